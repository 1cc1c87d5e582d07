"""Whole trainings: PyTorch's losses, in a plain loop and in those that others have written."""

import accelerate
import lightning
import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import onepass.torch

VOCABULARY, LENGTH = 11, 8


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)))


def batches(n):
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        tokens = torch.randint(VOCABULARY, (16, LENGTH), generator=generator)
        yield tokens, tokens.flip(1)


class Run:
    """A transformer that learns to turn sequences round, in bfloat16 by autocast."""

    def __init__(self, cls, clips_itself):
        torch.manual_seed(1)
        self.model = Transformer()
        options = {"max_grad_norm": 1.0} if clips_itself else {}
        self.clips_itself = clips_itself
        self.optimizer = cls(self.model.parameters(), lr=3e-3, weight_decay=0.01, **options)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 3e-3, total_steps=40)

    def train(self, data):
        losses = []
        for tokens, target in data:
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(self.model(tokens).flatten(0, 1), target.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            if not self.clips_itself:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def parts(self):
        return self.model, self.optimizer, self.scheduler

    def resume(self, other):
        for mine, theirs in zip(self.parts(), other.parts(), strict=True):
            mine.load_state_dict(theirs.state_dict())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_transformer_with_scheduler_autocast_and_resume():
    data = list(batches(40))
    theirs = Run(torch.optim.AdamW, clips_itself=False).train(data)
    whole = Run(onepass.torch.AdamW, clips_itself=True)
    mine = whole.train(data)
    assert theirs[-1] < theirs[0] / 1.05
    # Autocast rounds activations to 8 bits, so that differences in the last bit of a weight grow.
    np.testing.assert_allclose(mine, theirs, rtol=0.02)
    np.testing.assert_allclose(mine[:5], theirs[:5], rtol=1e-3)
    first, second = (Run(onepass.torch.AdamW, clips_itself=True) for _ in range(2))
    begun = first.train(data[:20])
    second.resume(first)
    assert begun + second.train(data[20:]) == mine
    assert not whole.optimizer.fallbacks


def test_accelerate():
    def train(cls):
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = torch.nn.Linear(4, 2)
        optimizer = cls(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        data = DataLoader(TensorDataset(torch.randn(32, 4), torch.randn(32, 2)), 8)
        model, optimizer, scheduler, data = accelerator.prepare(model, optimizer, scheduler, data)
        for _ in range(2):
            for x, y in data:
                loss = functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                assert not optimizer.step_was_skipped
                scheduler.step()
                optimizer.zero_grad()
        return [param.detach() for param in model.parameters()]

    for a, b in zip(train(torch.optim.AdamW), train(onepass.torch.AdamW), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Module(lightning.LightningModule):
    def __init__(self, cls, **settings):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.cls, self.settings = cls, settings

    def training_step(self, batch, _):
        return functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = self.cls(self.parameters(), lr=0.1, **self.settings)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


QUIET = ("enable_progress_bar", "enable_model_summary", "logger")


@pytest.mark.filterwarnings("ignore")  # Lightning warns of many things that are not ours
def test_lightning(tmp_path):
    """Fit, a checkpoint, and a fit that goes on from it."""

    def fit(cls, folder, epochs, checkpoint=None, **settings):
        torch.manual_seed(0)
        module = Module(cls, **settings)
        data = DataLoader(TensorDataset(torch.randn(32, 4), torch.randn(32, 2)), 8)
        options = {**dict.fromkeys(QUIET, False), "accelerator": "cpu", "max_epochs": epochs}
        clip = {} if settings else {"gradient_clip_val": 0.5}
        trainer = lightning.Trainer(default_root_dir=folder, **options, **clip)
        trainer.fit(module, data, ckpt_path=checkpoint)
        trainer.save_checkpoint(folder / "last.ckpt")
        return module

    expected = fit(torch.optim.AdamW, tmp_path / "a", 4)
    clipped_here = fit(onepass.torch.AdamW, tmp_path / "b", 4, max_grad_norm=0.5)
    fit(onepass.torch.AdamW, tmp_path / "c", 2)
    resumed = fit(onepass.torch.AdamW, tmp_path / "c", 4, checkpoint=tmp_path / "c" / "last.ckpt")
    for module in (clipped_here, resumed):
        for a, b in zip(expected.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_step_is_pytorchs():
    """A compiler traces PyTorch's own step."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = onepass.torch.AdamW([param])
    param.grad = torch.ones(3)
    step = torch.compile(optimizer.step, backend="eager")
    step()
    expected = torch.nn.Parameter(torch.ones(3))
    expected.grad = torch.ones(3)
    torch.optim.AdamW([expected]).step()
    torch.testing.assert_close(param, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of names that PyTorch gives up
def test_zero_redundancy_optimizer(tmp_path):
    """It makes the class for the part of each process, and hands groups over in every step."""
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        runs = []
        for cls, settings in (
            (torch.optim.AdamW, {}),
            (onepass.torch.AdamW, {"max_grad_norm": 1e9, "ema_decay": 0.9}),
        ):
            torch.manual_seed(0)
            model = torch.nn.parallel.DistributedDataParallel(
                torch.nn.Linear(4, 3), gradient_as_bucket_view=True
            )
            optimizer = ZeroRedundancyOptimizer(
                model.parameters(), optimizer_class=cls, lr=0.1, **settings
            )
            for step in range(4):
                optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
                optimizer.zero_grad()
                model(torch.ones(2, 4)).square().sum().backward()
                optimizer.step()
            runs.append([param.detach() for param in model.parameters()])
        for a, b in zip(*runs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not optimizer.optim.fallbacks
        assert optimizer.optim.last_step.step == 4
    finally:
        distributed.destroy_process_group()
