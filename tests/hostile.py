"""Inputs that try to run code, leave their folder, reach a network or fill the memory; used by ``fuzz.py``.

``CODE`` touches a file named ``ran`` in the working directory, and so does importing the module ``evil``.
"""

import io
import json
import pickle
import zipfile

import torch

EVIL = "from pathlib import Path\nPath('ran').touch()\nclass Task: ...\ndef task(*_, **__): ...\n"
CODE = "touch ran"
NAMES = ("a.yaml", "a.yml", "a.json", "a.txt", "a.cfg", "A.YAML", "a", "a.yaml.bak")
CLASSES = (
    "evil.Task", "evil.task", "os.system", "subprocess.Popen", "builtins.exec", "builtins.eval", "pathlib.Path",
    "segcft.core.recipes.os.system", "segcft.core.recipes.importlib.import_module", "segcft.core.atomic_files.Path",
    "segcft.core.provenance.subprocess.run", "segcft.tasks.base.LightningModule", "segcft.core.recipes.TRUST",
    "data_modules.common.loaders.torch.load", "torch.nn.modules.module.torch.load", "torch.optim.lr_scheduler.types",
    "torch.nn.init.warnings.sys.modules", "torch.hub.load", "torch.load", "torch.nn.parallel.distributed.os.system",
    "lightning.pytorch.callbacks.lambda_function.Callback.__class__", "lightning.pytorch.loggers.wandb.os.system",
    "lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.MLFlowLogger", "monai.bundle.ConfigWorkflow",
    "lightning.pytorch.cli.LightningCLI", "segcft.cli.main.main", "segcft.cli.training.SegCFTCLI", "jsonargparse.CLI",
    "segcft.tasks.PretrainHVAE.__init__", "segcft..tasks", ".evil", "evil", "", "segcft.tasks.PretrainHVAE.forward",
)  # fmt: skip
SCALARS = (
    *("", None, True, -1, 0, 10**9, -(10**30), 1e308, float("inf"), float("nan"), [], {}, [[]], {"": None}, "null"),
    *("9" * 400, "1e400", "0x41", "\u0663", "\0", "a\nb", "\u202e\U0001f4a9", "x" * 3000),
    *("../../ran", "/etc/passwd", "~/ran", "file:///etc/passwd", "s3://a/b", "memory://a"),
    *("http://127.0.0.1:9/a", "https://example.org/a.yaml", "hf-hub:a/b", "tu-hf-hub:a/b"),
    *("$(touch ran)", "`touch ran`", "{0.__class__}", "${oc.env:HOME}", "%(ran)s", "$import os", "@a"),
    *("!!python/object/apply:os.system ['touch ran']", '{"class_path": "evil.Task"}', "evil.Task", "os.system"),
    {"class_path": "evil.Task"}, {"class_path": "os.system", "init_args": {"command": CODE}}, {"class_path": None},
    {"_target_": "os.system", "command": CODE}, {"__path__": "a.yaml"}, {"class_path": ["evil.Task"]},
)  # fmt: skip
OPTIONS = (
    *("--model=evil.Task", "--data=evil.Task", "--trainer.logger=evil.Task", "--trainer.strategy=evil.Task"),
    *("--trainer.callbacks=evil.Task", "--trainer.callbacks+=os.system", "--model.init_args.hvae=evil.Task"),
    *("--ckpt_path=file:///etc/passwd", "--ckpt_path=http://127.0.0.1:9/a", "--ckpt_path=plain.ckpt"),
    *("--weights_only=false", "--experiment=../..", "--experiment=/ran", "--model.init_args.stage=../ran"),
    *("--config=http://127.0.0.1:9/a", "--config=file:///etc/passwd", "--config=memory://a", "--config=/dev/zero"),
    *("--trainer.default_root_dir=s3://a/b", "--trainer.profiler=evil.Task", "--trainer.plugins=evil.Task"),
    *("--resume=http://127.0.0.1:9/a", "--resume=plain.ckpt", "--seed_everything=evil", "--print_config=x"),
)


def texts():
    """Configurations as text: every class where a class, a part, a string or a reference may be named."""
    for name in CLASSES:
        recipe = json.dumps({"class_path": name, "init_args": {"command": CODE}})
        yield from (
            f"model: {name}",
            f"model: {recipe}",
            f"model: '{recipe}'",
            f"data: {recipe}",
            f"data: {name}",
            f"trainer: {{callbacks: [{recipe}]}}",
            f"trainer: {{callbacks: {name}}}",
            f"trainer: {{logger: {recipe}, plugins: {recipe}, profiler: {recipe}, strategy: {recipe}}}",
            f"trainer: {{callbacks: [{{class_path: LambdaCallback, init_args: {{setup: {name or 'x'}}}}}]}}",
            f"model: {{class_path: segcft.tasks.PretrainHVAE, init_args: {{hvae: {recipe}}}}}",
            f"model: {{class_path: segcft.tasks.PretrainHVAE, init_args: {{optimisation: {recipe}}}}}",
            f"model: {{class_path: segcft.tasks.TrainSegmentor, init_args: {{network: {name or 'x'}}}}}",
            f"_class_path: {name}\n_instantiator: evil.task",
            f"configs: [a.yaml]\nobjective: val/loss\nspace: {{trust: {{choices: [{name or 'x'}]}}}}",
        )
    yield from bombs()


def bombs():
    """YAML that is small and becomes large, or asks the parser to build objects."""
    layers = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 12)}]" for n in range(1, 12))]
    merges = ["a0: &a0 {k: x}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}" for n in range(1, 40))]
    yield from ("\n".join(layers), "\n".join(merges), "a: " + "[" * 5000 + "]" * 5000, "{" * 5000, "- " * 3000 + "a")
    yield from (
        "a: &a [*a]",
        "a: *a",
        "a: &a {<<: *a}",
        "? [a]\n: b",
        "a: !!binary ////",
        "a: 2001-99-99",
        "a: 1:99:99",
    )
    yield from (
        f"a: !!python/{kind}:os.system ['touch ran']" for kind in ("object/apply", "object/new", "name", "module")
    )
    yield from (
        "--- a\n--- b",
        "%YAML 9.9\n---\na: b",
        "\t",
        "a:\n\t- b",
        "\x00",
        "\ufeffmodel: evil.Task",
        "&a " * 2000,
    )


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, (CODE,)


def pickles():
    """Files that run code if they are unpickled carelessly, and archives that are small and become large."""
    yield from (pickle.dumps(Runs(), protocol) for protocol in range(6))
    for settings in ({}, {"_use_new_zipfile_serialization": False}):
        file = io.BytesIO()
        torch.save({"segcft": Runs(), "state_dict": {}}, file, **settings)
        yield file.getvalue()
    for module, name in (
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("evil", "Task"),
    ):
        yield f"c{module}\n{name}\n(S'{CODE}'\ntR.".encode()
    yield from archives()


def archives():
    """Zip files of torch's layout whose entries are compressed, or whose tensors claim more than there is."""
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2**24)}, "segcft": {}}, file)
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry.filename))
    yield packed.getvalue()
    for size in (2**30, 2**50):
        file = io.BytesIO()
        torch.save(
            {"state_dict": {"model.a": torch.zeros(1).expand(size)}, "segcft": {"version": 1, "parts": {}}}, file
        )
        yield file.getvalue()


def nested(depth=40):
    """A list that holds the one below it twice: few objects, 2^depth entries if they are written out."""
    inner = ["x"]
    for _ in range(depth):
        inner = [inner, inner]
    return inner
