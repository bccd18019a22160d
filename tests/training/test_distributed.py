"""Several processes take one step: the same weights everywhere, from the mean of their gradients, or none at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sparsecodec.models import create
from sparsecodec.models.evc import LAMBDAS
from sparsecodec.training import Recipe, Trainer, rate_distortion

WORLD = 2
VALUES = {"model": "evc-tiny", "steps": 2, "batch": 4, "crop": 64, "warmup": 1, "log_every": 1}

SCRIPT = """
import json, sys
import torch
from sparsecodec.models import create
from torch import nn
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.training import Method, Recipe, Trainer, distributed

class Data:
    def batch(self, step, size, start=0):
        generator = torch.Generator().manual_seed(step)
        return torch.rand(99, 3, 64, 64, generator=generator)[start : start + size]

class Own(Method):  # each process uses a parameter of its own, of a size of its own, and none uses the last
    def __init__(self):
        super().__init__()
        self.own = nn.ParameterList([torch.zeros(2), torch.zeros(3), torch.zeros(5)])

    def parameter_groups(self):
        return [{"params": list(self.own), "lr": 1e-3}]

    def loss(self, out, x):
        return self.own[distributed.rank()].sum()

torch.set_num_threads(1)
distributed.start("cpu")
torch.manual_seed(0)
trainer = Trainer(Recipe.from_dict(json.loads(sys.argv[1])), create("evc-tiny"), Data(), sys.argv[2], Own())
gradients = {}
update = trainer.method.update
def watch(optimizer):
    if not gradients:
        gradients.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
        gradients.update({f"own.{i}": p.grad.clone() for i, p in enumerate(trainer.method.own[:2])})
        assert trainer.method.own[2].grad is None
    update(optimizer)
trainer.method.update = watch
trainer.run()
from safetensors.torch import save_file
save_file({name: g.contiguous() for name, g in gradients.items()}, f"{sys.argv[2]}/gradients-{distributed.rank()}")
with open(f"{sys.argv[2]}/hash-{distributed.rank()}", "w") as file:
    file.write(model_hash(trainer.model).hex())
"""


APART = """
import json, sys
import torch
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.training import Recipe, Trainer, distributed

torch.set_num_threads(1)
distributed.start("cpu")
rank = distributed.rank()
recipe = Recipe.from_dict(json.loads(sys.argv[1]))
for name, seeds in (("steps", (0, 0)), ("weights", (0, 1))):
    torch.manual_seed(seeds[rank])
    try:
        Trainer(recipe, create(recipe.model), None, f"{sys.argv[2]}/{name}-{rank}")
    except UsageError as error:
        with open(f"{sys.argv[2]}/{name}-refused-{rank}", "w") as file:
            file.write(str(error))
"""


def _torchrun(script: str, values: dict, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD}"]
    arguments = [str(folder / "script.py"), json.dumps(values), str(folder)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def test_processes_that_do_not_start_alike_are_refused(tmp_path: Path):
    """As where each machine has a folder of its own, and the first one's run was cut off."""
    values = {**VALUES, "model": "evc-nano"}
    torch.manual_seed(0)
    trainer = Trainer(Recipe.from_dict(values), create("evc-nano"), None, tmp_path / "steps-0")
    trainer.step = 1
    trainer.save()
    done = _torchrun(APART, values, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(WORLD):
        steps, weights = ((tmp_path / f"{what}-refused-{rank}").read_text() for what in ("steps", "weights"))
        assert "process 1 is at step 0" in steps and "process 0 at step 1" in steps and "all machines share" in steps
        assert "process 1 is at step 0" in weights and "process 0 at step 0" in weights


def test_two_processes_step_alike_by_the_mean_of_their_gradients(tmp_path: Path):
    done = _torchrun(SCRIPT, {**VALUES, "gradient_clip": 1e9}, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    hashes = {(tmp_path / f"hash-{rank}").read_text() for rank in range(WORLD)}
    assert len(hashes) == 1
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1]

    found = [load_file(tmp_path / f"gradients-{rank}") for rank in range(WORLD)]
    expected = _mean_gradients(tmp_path)
    for rank in range(WORLD):  # the mean of ones and of nothing
        assert torch.equal(found[rank]["own.0"], torch.full((2,), 0.5))
        assert torch.equal(found[rank]["own.1"], torch.full((3,), 0.5))
    for name, gradient in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-9)


def _mean_gradients(folder: Path) -> dict[str, torch.Tensor]:
    """Of step 0, computed one share after the other."""
    torch.manual_seed(0)
    trainer = Trainer(Recipe.from_dict(VALUES), create("evc-tiny"), None, folder / "alone")
    model, share = trainer.model.train(), VALUES["batch"] // WORLD
    crops = torch.rand(99, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for rank in range(WORLD):
        torch.manual_seed(rank)  # seed 0, step 0
        x = crops[rank * share : (rank + 1) * share]
        out, rates = trainer.method.forward(model, x)
        (rate_distortion(out, x, torch.tensor(LAMBDAS)[rates])[0] / WORLD).backward()
    return {name: p.grad for name, p in model.named_parameters()}
