"""The PyTorch peer: the same student, teacher, losses and optimizer, as earlier codes.

Hugging Face's BERT with eager attention; fake quantisation module by module, by an
``autograd.Function`` each, as DeepSpeed's compression does it for XTC: 1-bit matrices
with one scale, a word table with one scale a row that is quantised whole in every step,
8-bit symmetric activations with one scale a token. Losses are means over all positions,
padding too, as in TinyBERT, BinaryBERT and XTC. Its weights are copied from ours, so
that the losses of the first step are the same.

Source: XTC (Wu et al. 2022, arXiv:2206.01859).
"""

import contextlib
import functools
import os
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.masking_utils import eager_mask

import bitflax as bf
from bitflax.data.batches import Batches
from bitflax.types import INPUTS
from tests.benchmarks import steps

ATTENTION = "scores-before-softmax"


class Binary(torch.autograd.Function):
    """``sign(w) mean|w|``, the rows in so many groups; the gradient is that of ``w``."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, groups: int) -> torch.Tensor:
        rows = w.reshape(groups, -1)
        scale = rows.norm(p=1, dim=1, keepdim=True).div(rows.shape[1])
        return rows.sign().mul(scale).view_as(w)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class Symmetric(torch.autograd.Function):
    """Levels -128 to 127, one scale a token; the gradient is that of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bits: int) -> torch.Tensor:
        rows, levels = x.reshape(-1, x.shape[-1]), 2**bits
        scale = 2 * rows.abs().amax(dim=-1, keepdim=True) / levels
        rounded = (rows / scale).round().clamp(-levels // 2, levels // 2 - 1)
        return (rounded * scale).view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class QuantLinear(nn.Linear):
    """A linear layer with a 1-bit matrix and 8-bit inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = Binary.apply(self.weight, 1)
        return F.linear(Symmetric.apply(x, 8), weight, self.bias)


class QuantEmbedding(nn.Embedding):
    """A 1-bit table with one scale a row."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        table = Binary.apply(self.weight, self.num_embeddings)
        return F.embedding(ids, table, self.padding_idx)


def _attention(module, query, key, value, mask, scaling=None, **_: Any):
    """Hugging Face's eager attention, but for what it gives back: scores, masked."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if mask is not None:
        scores = scores + mask
    probs = scores.softmax(dim=-1)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), scores


transformers.AttentionInterface.register(ATTENTION, _attention)
transformers.AttentionMaskInterface.register(ATTENTION, eager_mask)


def network(config: bf.BertConfig, params: Any, quantised: bool) -> nn.Module:
    """Return Hugging Face's classifier with our parameters, quantised or not."""
    made = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        num_labels=config.num_labels,
        layer_norm_eps=config.layer_norm_eps,
        pad_token_id=config.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=ATTENTION,
    )
    net = transformers.BertForSequenceClassification(made)
    state = bf.params_to_hf(params, config)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    if quantised:
        # Another class over the same weights: what replacing a module comes to.
        net.bert.embeddings.word_embeddings.__class__ = QuantEmbedding
        for module in net.bert.encoder.modules():
            if isinstance(module, nn.Linear):
                module.__class__ = QuantLinear
    return net


def distillation(said: Any, told: Any, layers: tuple[int, ...]) -> dict[str, Any]:
    """Return the parts of the single-stage loss."""
    target, log_p = told.logits.softmax(-1), said.logits.log_softmax(-1)
    hidden = bf.layer_pairs(layers, hidden=True)
    scores = bf.layer_pairs(layers)
    return {
        "logits": -(target * log_p).mean(),
        "hidden": sum(
            F.mse_loss(said.hidden_states[s], told.hidden_states[t]) for s, t in hidden
        ),
        "scores": sum(
            F.mse_loss(said.attentions[s], told.attentions[t]) for s, t in scores
        ),
    }


@functools.cache
def _teacher(name: str, vocab_size: int) -> nn.Module:
    """Return the teacher, which all peers of one model share."""
    config, _, _ = steps.configs(name)
    return network(config, steps.teacher_params(name), False).eval()


def adamw(net: nn.Module, optim: bf.Optim) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW; biases and LayerNorm do not decay."""
    bare = ("bias", "LayerNorm")
    named = list(net.named_parameters())
    groups = [
        {
            "params": [p for name, p in named if any(n in name for n in bare) == off],
            "weight_decay": 0.0 if off else optim.weight_decay,
        }
        for off in (False, True)
    ]
    betas = (optim.b1, optim.b2)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps)


class Stepper:
    """A student in training in PyTorch, called as ``steps.Stepper`` is.

    Args:
      kind: ``"fine-tuning"``, ``"fp32"`` or ``"1-bit"``.
      name: of ``common.MODELS``.
      batches: what it learns from.
      bfloat16: run both models and the losses under ``autocast("cpu", bfloat16)``.
      optim: of the optimizer.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        batches: Batches,
        *,
        bfloat16: bool = False,
        optim: bf.Optim | None = None,
    ):
        # As many threads as jax takes of what taskset left.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.batches, self.count, self.bfloat16 = batches, 0, bfloat16
        teacher, student, self._layers = steps.configs(name)
        start = bf.take_layers(steps.teacher_params(name), self._layers)
        self._student = network(student, start, kind == "1-bit").train()
        self._teacher = None
        if kind != "fine-tuning":
            self._teacher = _teacher(name, teacher.vocab_size)
        self._optim = optim or bf.Optim()
        self._optimizer = adamw(self._student, self._optim)
        warm = round(self._optim.warmup * steps.STEPS)
        rest = steps.STEPS - warm
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda n: n / warm if n < warm else (steps.STEPS - n) / rest,
        )

    def __call__(self, batch: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Take a step, on the next batch or on this one; return the parts of its loss."""
        if batch is None:
            batch = self.batches.batch(self.count)
            self.count += 1
        parts = self._parts(batch)
        self._optimizer.zero_grad()
        sum(parts.values()).backward()
        clip = self._optim.clip
        assert clip is not None
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), clip)
        self._optimizer.step()
        self._schedule.step()
        return {name: part.item() for name, part in parts.items()}

    def _parts(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        inputs = {name: torch.from_numpy(batch[name]).long() for name in INPUTS}
        on = contextlib.nullcontext()
        if self.bfloat16:
            on = torch.autocast("cpu", torch.bfloat16)
        with on:
            if self._teacher is None:
                labels = torch.from_numpy(batch["labels"]).long()
                logits = self._student(**inputs).logits
                return {"labels": F.cross_entropy(logits, labels)}
            asked = {"output_hidden_states": True, "output_attentions": True}
            with torch.no_grad():
                told = self._teacher(**inputs, **asked)
            said = self._student(**inputs, **asked)
            return distillation(said, told, self._layers)
