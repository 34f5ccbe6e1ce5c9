"""advml completion bash

Prints a script that completes verbs, groups, choices and keys on Tab. For this shell, or for every new one:

  eval "$(advml completion bash)"
  advml completion bash >> ~/.bash_completion
"""

from __future__ import annotations

from collections.abc import Sequence

SCRIPT = """\
_advml() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
        run|sweep)
            local line="${{COMP_LINE/advml sweep /advml run }}"
            COMPREPLY=($(COMP_LINE="$line" COMP_POINT="$COMP_POINT" advml run -sc query=bash 2>/dev/null))
            compopt -o nospace ;;
        list) COMPREPLY=($(compgen -W "{kinds} runs" -- "$current")) ;;
        study) COMPREPLY=($(compgen -W "{studies}" -- "$current")) ;;
        data) COMPREPLY=($(compgen -W "list download verify" -- "$current")) ;;
        *)
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            compopt -o filenames ;;
    esac
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=/}}
complete -F _advml advml
"""


def main(arguments: Sequence[str]) -> int:
    """Print the script."""
    from advml.commands import VERBS
    from advml.commands.list import KINDS
    from advml.errors import ConfigError
    from advml.roots import members

    if list(arguments) != ["bash"]:
        raise ConfigError("completion: there is one for bash: advml completion bash")
    studies = " ".join(sorted(members("study")))
    print(SCRIPT.format(verbs=" ".join(VERBS), kinds=" ".join(KINDS), studies=studies), end="")
    return 0
