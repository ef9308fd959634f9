"""Bundles of dumps as libtpu writes them."""

from __future__ import annotations

import pytest

from trainlib.planning.kernels.bundles import parse, total

# A grid of 4 steps (and 2 that fetch and write), in whose body lies a condition and a loop of 8
# turns, from 4 to 36 by 4; after the branch back some bundles still run.
DUMP = """\
LB: loop body

     0   :  { %s0 = inlined_call_operand.hbm }
   0x1   :  { %s20 = smov 0 }
   0x2 LB: > { %s21 = sphi %s20, %s22 }
   0x3   : > { %s22 = sadd.s32 1, %s21 }
   0x4   : > { %30 = sbr.rel (%p31) target = $region9 }
   0x5   :  {}
   0x6   : > { %40 = sbr.rel (%p41) target = $region7 }
   0x7   : > { %42 = vst }
   0x8   : > { %43 = vst }
   0x9 PF: > { %s50 = smov 4 } /* Start/End empty region 7 */
   0xa LB: >> { %s51 = sphi %s50, %s52 }
   0xb   : > { %44 = moved from outside }
   0xc   : >> { %s52 = sadd.s32 4, %s51  ;;  %p53 = scmp.ge.s32.totalorder %s52, BOUND }
   0xd   : >> { %54 = sbr.rel (!%p53) target = $region11 /* Start region 10
a comment of two lines */ }
   0xe   : >> { %55 = vst }
   0xf   : > { %56 = vst }
  0x10 PF: > { %57 = nop } /* Start/End empty region 9 */
  0x11   : > { %p58 = scmp.ge.s32.totalorder %s22, 6 /* loop exit test */ }
  0x12   : > { %59 = sbr.rel (!%p58) target = $region12 }
  0x13   :  { %60 = nop }
"""


def counted(bound: str, loops=(), branches=(), steps: int = 4):
    return total(parse(DUMP.replace("BOUND", bound)), steps, loops, branches)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_bundles_run_as_often_as_their_loops_turn(share):
    # Of a step: 3 up to the branch and 3 after its end, in between 4 and the loop of 5.
    step = 3 + 3 + (4 + 2 * share) + 8 * 5
    assert counted("36", loops=(8,), branches=(share,)) == (round(3 + 4 * step), ())


def test_an_exit_test_may_itself_run_under_a_condition():
    dump = DUMP.replace("scmp.ge.s32.totalorder %s52", "scmp.ge.s32.totalorder (%p9), %s52")
    found = total(parse(dump.replace("BOUND", "36")), 4, (None,), (1,))
    assert found == counted("36", branches=(1,))


def test_turns_that_only_the_kernel_knows():
    known, notes = counted("%s99", loops=(8,), branches=(1,))
    assert (known, notes) == counted("36", branches=(1,))
    once, notes = counted("%s99", loops=(None,), branches=(1,))
    assert once == known - 4 * 7 * 5
    assert notes == ("Bundles of a loop whose turns are not known are counted once.",)


def test_turns_that_are_told_go_before_those_of_the_text():
    """The text shows the end of a loop, but its start only where that is a number."""
    told = counted("36", loops=(3,), branches=(1,))[0]
    assert told == counted("36", branches=(1,))[0] - 4 * 5 * 5


def test_conditions_that_are_not_told_are_taken_as_true():
    known, notes = counted("36", branches=(None,))
    assert known == counted("36", branches=(1,))[0]
    assert notes == ("Bundles under a condition are counted as if it held.",)
