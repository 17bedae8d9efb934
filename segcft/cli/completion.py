"""``segcft completion bash | zsh``: a script that completes commands, options of a command, and files."""

from segcft.core.parsing import PlainParser

SCRIPT = """_segcft() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
  elif [ "${{word#--}}" != "$word" ]; then
    COMPREPLY=($(compgen -W "$(segcft "${{COMP_WORDS[1]}}" --help 2>/dev/null | grep -oE -- '--[A-Za-z][A-Za-z0-9_.-]*' | sort -u)" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _segcft segcft
"""  # noqa: E501


def completion(arguments: list[str]) -> None:
    """Print the script: ``source <(segcft completion bash)``."""
    parser = PlainParser("completion", "Print a script for your shell: source <(segcft completion bash).")
    parser.add_argument("shell", choices=("bash", "zsh"))
    options = parser.parse_args(arguments)
    from segcft.cli.main import COMMANDS  # lazily: it names this module

    script = SCRIPT.format(commands=" ".join(COMMANDS))
    print(("autoload -U +X bashcompinit && bashcompinit\n" if options.shell == "zsh" else "") + script)
