"""``segcft completion bash | zsh``: a script that completes commands, options of a command, and files at once.

The script holds every word: nothing is imported while somebody types. Tests compare the words with the parsers.
"""

from segcft.core.parsing import PlainParser

TRAINER = (
    *("--trainer.accelerator", "--trainer.devices", "--trainer.max_steps", "--trainer.max_epochs"),
    *("--trainer.precision", "--trainer.strategy", "--trainer.num_nodes", "--trainer.logger"),
)
STAGE = ("--config", "--data", "--model", "--experiment", "--seed_everything", "--ckpt_path", *TRAINER)
SOURCES = ("chexpert", "mimic_cxr", "padchest", "folder", "coronary_cta")
WORDS = {
    "init": ("--experiments", "--like"),
    "check": ("--experiments",),
    "study": (
        *("--declaration", "--docs", "--dry-run", "--experiments", "--launcher", "--methods", "--out", "--processes"),
        *("--seeds", "--split", "--stages"),
    ),
    "prepare": (*SOURCES, "--config", "--out", "--workers", "--on-error", "--overwrite"),
    "inspect": ("--images", "--out", "--seed", "--verify"),
    "fit": (*STAGE, "--resume", "--save_every", "--deterministic", "--print_config"),
    "validate": STAGE,
    "test": STAGE,
    "predict": STAGE,
    "evaluate": (
        *("--config", "--data", "--experiment", "--evaluator", "--methods", "--mechanism", "--out", "--split", "--ask"),
        *("--subjects", "--seed", "--sweeps", "--native", "--detect", "--references", "--gap", "--strict"),
    ),
    "sweep": ("--out", "--program", "--workers"),
    "report": ("--out",),
    "figure": ("--dpi", "--methods", "--out", "--steps", "--subjects", "--variables"),
    "counterfactual": (
        *("--checkpoint", "--image", "--out", "--do", "--sweep", "--parent", "--parents", "--corrections"),
        *("--confined", "--no-confined", "--effect", "--samples", "--temperature", "--spacing", "--window"),
        *("--strict", "--manifest", "--keep-identity", "--device"),
    ),
    "serve": ("--cases", "--config", "--data", "--device", "--host", "--port", "--recipe", "--token", "--upload_limit"),
    "export": ("--checkpoint", "--evaluator", "--intended-use", "--method", "--metrics", "--name", "--out"),
    "info": ("--json",),
    "launch": ("--devices", "--accelerator", "--strategy", "--precision", "--num-nodes", "--node-rank"),
    "completion": ("bash", "zsh"),
}
SCRIPT = """_segcft() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words="--help"
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands} --help --version"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _segcft segcft
"""


def completion(arguments: list[str]) -> None:
    """Print the script."""
    parser = PlainParser("completion", 'Print a script for your shell: eval "$(segcft completion bash)".')
    parser.add_argument("shell", choices=("bash", "zsh"))
    print(script(parser.parse_args(arguments).shell), end="")


def script(shell: str) -> str:
    """Commands first, then the words of each; files where none fits.

    Args:
        shell: ``bash``, or ``zsh``, which understands bash's script.
    """
    from segcft.cli.main import COMMANDS  # lazily: it names this module

    words = {name: " ".join((*WORDS.get(name, ()), "--help")) for name in COMMANDS}
    cases = "\n".join(f'      {name}) words="{each}" ;;' for name, each in words.items())
    head = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" if shell == "zsh" else ""
    return head + SCRIPT.format(commands=" ".join(COMMANDS), cases=cases)
