S I am living here since three year .
A 1 3|||R:VERB:TENSE|||have lived|||REQUIRED|||-NONE-|||0
A 4 5|||R:PREP|||for|||REQUIRED|||-NONE-|||0
A 6 7|||R:NOUN:NUM|||years|||REQUIRED|||-NONE-|||0

S It rained all night .
A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||0
