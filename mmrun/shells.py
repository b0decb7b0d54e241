"""What a shell runs to complete ``mmrun``: one script each, which asks ``mmrun -sc query=SHELL`` at every TAB.

Hydra's own scripts are not used: that of bash takes ``=`` out of COMP_WORDBREAKS, and with it changes every other
command's completion; that of fish would complete ``python`` as well; there is none for zsh, which takes bash's.

The query goes to the program that is being typed, so ``scripts/mmrun`` and another environment's ``mmrun`` answer for
themselves. It gets the line up to the cursor in COMP_LINE and prints one candidate per line. Where there is none, the
shell offers files. A candidate that ends in ``=``, ``.``, ``/`` or ``,`` is not finished: no space follows it.
"""

from __future__ import annotations

BASH = r"""
_mmrun() {
  local program=${COMP_WORDS[0]} line=${COMP_LINE:0:COMP_POINT} word kept candidate
  case $program in "~/"*) program=$HOME/${program:2} ;; esac
  word=${line##*[[:space:]]}
  kept=${word%"$2"} # the word's part before = or :, where bash begins another
  COMPREPLY=()
  while IFS= read -r candidate; do
    case $candidate in *[=./,]) ;; *) candidate="$candidate " ;; esac
    COMPREPLY+=("${candidate#"$kept"}")
  done < <(COMP_LINE=$line "$program" -sc query=bash 2>/dev/null)
}
complete -o nospace -o default -F _mmrun mmrun
"""
BASH_OFF = "complete -r mmrun 2>/dev/null; unset -f _mmrun"

ZSH = r"""
_mmrun() {
  local program=${~${(Q)words[1]}} line="${(j: :)words[1,CURRENT-1]} $PREFIX"
  local -a found
  found=(${(f)"$(COMP_LINE=$line $program -sc query=zsh 2>/dev/null)"})
  if (( $#found )); then
    compadd -S '' -- ${(M)found:#*[=./,]}
    compadd -- ${found:#*[=./,]}
  else
    compset -P '*='
    _files
  fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _mmrun mmrun
"""
ZSH_OFF = "compdef -d mmrun; unfunction _mmrun"

FISH = r"""
function __mmrun_complete
    set -l words (commandline -opc)
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    set -l found (env COMP_LINE=(commandline -cp | string collect) $program -sc query=fish 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        set -l parts (string match -r -- '^(.*=|)(.*)$' (commandline -ct))
        printf "$parts[2]%s\n" (__fish_complete_path $parts[3])
    end
end
complete -c mmrun -f -a '(__mmrun_complete)'
"""
FISH_OFF = "complete -c mmrun -e; functions -e __mmrun_complete"

# {shell: (script that installs, script that takes it away)}
SCRIPTS = {
    "bash": (BASH.lstrip(), BASH_OFF),
    "zsh": (ZSH.lstrip(), ZSH_OFF),
    "fish": (FISH.lstrip(), FISH_OFF),
}
