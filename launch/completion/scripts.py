"""What `vitattn-moe completion SHELL` prints: scripts that ask the program for words."""

BASH = r"""# Completion of vitattn-moe. In ~/.bashrc: eval "$(vitattn-moe completion bash)"
_vitattn_moe() {
    local line=${COMP_LINE:0:COMP_POINT} word breaks="" head="" found
    word=${line##*[[:space:]]}
    # Readline takes these for ends of words, and replaces what follows the last of them.
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+="="
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=":"
    [[ $breaks && $word == *[$breaks]* ]] && head=${word%"${word##*[$breaks]}"}
    COMPREPLY=()
    while IFS= read -r found; do
        [[ $found == *[[:space:]\'\"\&\;\(\)\$]* ]] && printf -v found %q "$found"
        COMPREPLY+=("${found#"$head"}")
    done < <("$1" completion --line="$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=:/] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _vitattn_moe vitattn-moe
"""

ZSH = r"""#compdef vitattn-moe
# Completion of vitattn-moe. In ~/.zshrc, after compinit: eval "$(vitattn-moe completion zsh)"
_vitattn_moe() {
    local -a found open whole
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX" word
    found=("${(@f)$("$words[1]" completion --line="$line" 2>/dev/null)}")
    for word in $found; do
        [[ $word == *[[:space:]\'\"\&\;\(\)\$]* ]] && word=${(q)word}
        if [[ $word == *[=:/] ]]; then open+=("$word"); else whole+=("$word"); fi
    done
    compadd -Q -S '' -- $open
    compadd -Q -- $whole
}
compdef _vitattn_moe vitattn-moe
"""

FISH = r"""# Completion of vitattn-moe. In ~/.config/fish/config.fish:
# vitattn-moe completion fish | source
function __vitattn_moe_words
    vitattn-moe completion --line=(commandline -cp | string collect) 2>/dev/null
end
complete -c vitattn-moe -f -a '(__vitattn_moe_words)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
