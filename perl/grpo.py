"""Reward, merged-group advantage and loss: the learning signal of PeRL, Eqs. 2-6.

For a question in n_s + 1 image orders x_i (the original first) with n rollouts o_ik each:

    r_ik  = 0.9 * accuracy + 0.1 * format                                         the reward
    R_bar = mean over all ik of r_ik                                              (4)
    A_ik  = (r_ik - R_bar) / sqrt(mean over all ik of (r_ik - R_bar)^2)           (5)
    J     = mean over all ik of the mean over tokens of
              min(rho A_ik, clip(rho, 1 - eps, 1 + eps) A_ik) - beta KL           (6)
    rho   = pi(o_ik | x_i) / pi_old(o_ik | x_i),  per token

Eqs. 2-3 (plain GRPO) are the case n_s = 0.

Where we differ. From the paper: a truncated importance weight corrects the gap between the engine that samples and the
model that learns (1 in float32). From the release: the spread has 1/N, not 1/(N-1); zero spread gives exactly zero; the
mean over tokens is taken inside each rollout, as Eq. 6 has it (`token_mean` is the release's). The paper gives no weights
for the reward and no eps; 0.9, 0.1 and 0.2 are the release's.

A prompt with several images is long and its n rollouts share it. `Policy` therefore computes one row a prompt,

    [ prompt | o_1 | o_2 | ... | o_n ]     a token sees the prompt and its own rollout, causally,

in which prompt and images are computed once instead of n times; it is exact, not an approximation.

Torch only; math-verify and transformers are imported inside the one function that needs each.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1    # the release's weights; the paper names both rewards but no weights
_LIMIT, _DEPTH = 400, 10                     # characters (beyond the gold's own) and nesting of an answer worth reading
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict(zip(map(ord, "　。、−–→⟶⇒"), " .,-->>>"))
_WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ii]mage|图)[\s:]*)?"
                     r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?=[.:),]|$))(?:$|(?:[:),]|\.(?=\s)|(?<=[)\]]))\s*(.*))")
_NAMES = "one first 1st 一|two second 2nd 二|three third 3rd 三|four fourth 4th 四|five fifth 5th 五|six sixth 6th 六|" \
         "seven seventh 7th 七|eight eighth 8th 八|nine ninth 9th 九|ten tenth 10th 十"
_NUMBER = {name: i for i, names in enumerate(_NAMES.split("|"), start=1) for name in names.split()}
_N, _NOUN = rf"([0-9]{{1,3}}|{'|'.join(_NUMBER)})", r"(?:image|picture|photo|figure|fig\.?|panel|图像|图片|照片|图|画)"
_INDEX = re.compile(rf"(?:the )?(?:{_NOUN}\s*(?:#|no\.|number)?\s*)?[(\[]?{_N}[)\]]?|(?:the )?{_N} (?:{_NOUN}|one)"
                    rf"|第\s*{_N}\s*[张幅个副]?\s*{_NOUN}?")
_TRUTH = dict.fromkeys("true yes 是 对 正确".split(), True) | dict.fromkeys("false no 否 错 错误 不是".split(), False)
_UNITS = r"(%|°|(?:(?<=[\s}])[mgshLNJWVK]|mm|cm|dm|km|kg|mg|ml|mL|min|hours?|minutes?|seconds?|days?|years?|units?|" \
         r"met(?:er|re)s?|inch(?:es)?|feet|ft|miles?|dollars?|km/h|m/s|毫米|厘米|千米|米|元|度)(?:\^\{?[23]\}?|[²³])?)?"
_QUANTITY = re.compile(rf"(?:([a-zA-Z])\s*=\s*)?(.*?)\s*{_UNITS}")
_LATEX = re.compile(r"(?:\\(?:[dtc]?frac|sqrt|pi|cdot|times|div|sin|cos|tan|ln|alpha|beta|theta)(?![a-zA-Z])"
                    r"|(?<![a-zA-Z])[a-zA-Z]{1,2}(?![a-zA-Z])|(?<![0-9])[0-9]{1,15}(?![0-9])|[-+*/^.(){}\[\] ])+")
_POWER = re.compile(r"\^\s*(?:\{\s*-?([0-9]{0,2})[a-z]?(?:/[1-9])?\s*\}|([0-9a-z]))(?!\s*\^)")


def boxed(response: str) -> str | None:
    r"""The text in the last \boxed{...}, nested braces kept; None where there is no box or it never closes."""
    start = max((match.end() for match in re.finditer(r"\\boxed\s*\{", response)), default=None)
    depth = 1
    for token in re.finditer(r"\\.|[{}]", response[start:], re.DOTALL) if start is not None else ():
        depth += {"{": 1, "}": -1}.get(token[0], 0)          # an escaped brace is text
        if depth == 0:
            return response[start:start + token.start()]
    return None


def format_ok(response: str) -> bool:
    r"""<think>...</think> first, once, then a \boxed{}. An empty thought passes, as in the release: a required length
    would be met by one character, and whether a thought helps is accuracy's to say. Ours: a second think block fails."""
    head, closed, tail = response.partition("</think>")
    once = head.lstrip().startswith("<think>") and head.count("<think>") == 1
    return once and bool(closed) and "<think>" not in tail and "</think>" not in tail and boxed(tail) is not None


def reward(response: str, answer: str, options: dict[str, str] | None = None) -> float:
    """r = 0.9 accuracy + 0.1 format (paper: both, rule based; release: these weights)."""
    return ACCURACY_WEIGHT * accuracy(response, answer, options) + FORMAT_WEIGHT * format_ok(response)


def accuracy(response: str, answer: str, options: dict[str, str] | None = None) -> float:
    r"""1.0 where the last box gives `answer`, else 0.0; never raises, whatever the response.

    A capital letter is an option: `A`, `(A)`, `A.`, `Option A`, `\text{A}`, `A. its text`, or its text alone where one
    option has it. `a` is not `A`. Other answers: see `_same`. Release: mathruler, where `B+A-B` is A and no box is "None".
    """
    box = boxed(response)
    if box is None or len(box) > _LIMIT + len(answer) or _depth(box) > _DEPTH:
        return 0.0
    box, gold = _plain(box), _plain(answer)
    texts = {letter: _plain(text) for letter, text in (options or {}).items()}
    if gold not in texts and len(hits := [letter for letter, text in texts.items() if _same(gold, text)]) == 1:
        gold = hits[0]                                       # the gold is an option's text
    return float(bool(box) and (_option(box, gold, texts) if _LETTER.fullmatch(gold) else _same(box, gold)))


def _option(box: str, gold: str, texts: dict[str, str]) -> bool:
    letter, text = _letter(gold)
    texts = texts or ({letter: text} if text else {})        # gold "A. 5" brings its own text
    named, rest = _letter(box)
    if named and not rest:
        return named == letter
    agrees = _same(rest, texts[named]) if named in texts else not re.search(r"\b[A-Z]\b", rest)   # "A: or B" is no choice
    return named == letter and agrees or [key for key, value in texts.items() if _same(box, value)] == [letter]


def _same(box: str, gold: str) -> bool:
    """Dispatch on the kind of gold: truth value, image index, list in order (`2,1`, `2→1`, `BA`; braces: set), number, text."""
    if _TRUTH.get(gold.lower()) is not None:
        return _TRUTH.get(box.lower()) is _TRUTH[gold.lower()]     # yes is true: the question's wording decides
    if _text(box) == _text(gold):
        return bool(gold)
    if (i := _index(gold)) is not None and (j := _index(box)) is not None:
        return i == j
    (opened, golds), (bracket, boxes) = _list(gold), _list(box)
    if len(golds) != len(boxes) or (opened == "{}") < (bracket == "{}"):
        return False
    if opened == "{}":
        return all(any(_same(b, g) for b in boxes) for g in golds) and all(any(_same(b, g) for g in golds) for b in boxes)
    if len(golds) > 1:                                       # (0,1) is not [0,1], yet an order may stand in any brackets
        free = len(golds) > 2 or not (opened and bracket)
        return (opened == bracket or free) and all(map(_same, boxes, golds))
    return _math(box, gold)


def _math(box: str, gold: str) -> bool:
    """Numbers and terms. A dropped unit is forgiven, a different one is not. 50% is 0.5, and 50 with the sign dropped;
    up to 1 the sign may not be dropped, since 0.5 would be 0.5% and 50% at once."""
    parts = [_QUANTITY.fullmatch(side).groups() for side in (box, gold)]
    (x_name, x, x_unit), (y_name, y, y_unit) = parts
    if (x_name and y_name and x_name != y_name) or (x_unit and y_unit and x_unit != y_unit):
        return False
    x, y = _value(x), _value(y)
    if x is None or y is None:
        return False
    x_cents, y_cents = (z / 100 if unit == "%" else z for z, unit in ((x, x_unit), (y, y_unit)))
    return _close(x_cents, y_cents) or _close(x, y) and (abs(y) > 1 or "%" not in (x_unit, y_unit))


def _close(x: complex, y: complex) -> bool:
    return abs(x - y) <= 1e-6 * abs(y)


def _value(latex: str) -> complex | None:
    """What `latex` evaluates to with every variable at a fixed generic point, or None. Two terms are equal where their
    values are: no symbolic simplification, whose cost a response could choose. math-verify parses, without its signal
    alarm (it fails outside the main thread); the guard keeps powers, digits, length and nesting small instead."""
    powers = [int(match[1] or "1") if match[1] is not None else int(match[2]) if match[2].isdigit() else 1
              for match in _POWER.finditer(latex)]
    size = 1
    for power in powers:
        size *= max(power, 1)
    if not _LATEX.fullmatch(latex) or len(powers) != latex.count("^") or size > 1000 or len(latex) > 150:
        return None
    if not re.search(r"[0-9\\]|[-+*/^]", latex):             # only letters: a word, whose anagrams are not equal
        return None
    from math_verify import LatexExtractionConfig, parse
    try:
        term = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)[0]
        point = {s: 0.5 + sum(map(ord, s.name)) % 89 / 31 for s in term.free_symbols}
        return complex(term.evalf(15, subs=point))
    except Exception:                                        # sympy and antlr raise anything on malformed LaTeX
        return None


# --- Eqs. 4-5: one baseline and one spread for all orders of a question ---


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Merged-group advantages, Eqs. 4-5. rewards (Q, (n_s+1) n) -> (Q, (n_s+1) n), float32.

    All orders of a question share one baseline and one spread, so an order on which the model does worse than on its
    sibling gets negative advantages as a whole, and the better one positive ones. Two separate groups could not say that:

    >>> original, permuted = torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.0, 0, 0, 1]])
    >>> advantages(torch.cat([original, permuted], dim=1))    # merged, as in the paper
    tensor([[ 0.7746,  0.7746,  0.7746,  0.7746, -1.2910, -1.2910, -1.2910,  0.7746]])
    >>> advantages(original)                                  # the same four rollouts alone: no spread, no signal
    tensor([[0., 0., 0., 0.]])

    The spread has 1/N as in the paper (the release: 1/(N-1)). A group whose rewards are all equal has exactly zero
    advantage: there is nothing to divide by, and no epsilon that would blow rounding errors up to one.
    """
    r = rewards.double()
    centred = r - r.mean(dim=1, keepdim=True)  # Eq. (4): R_bar, over all (n_s+1) n rewards
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()  # (Q, 1)
    equal = r.amax(dim=1, keepdim=True) == r.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, centred / spread).nan_to_num(0.0).float()  # Eq. (5)


# --- Log-probabilities: one row a prompt, shared by its n rollouts ---


@dataclass(frozen=True)
class Row:
    """[ prompt | o_1 | ... | o_n ]: one image order x_i of a question and its n rollouts, each on the CPU.

    `images` are the prompt's pictures in order, anything with `key`, `pixel_values` (patches, D) and `grid_thw` (3,):
    rollout.Image is one. Rows that show a picture of the same key share its embedding."""

    prompt_ids: torch.Tensor  # (P,) image pads expanded
    images: tuple
    responses: tuple[torch.Tensor, ...]  # n tensors (T_k,)


def shared_prefix_attention(module, q, k, v, attention_mask, segments, scaling=None, **_):
    """Attention over rows laid end to end: prompts see themselves, rollouts their prompt and themselves, both causally.

    q (1, H, L, D), k and v (1, H_kv, L, D); `segments` holds (P, (T_1 .. T_n)) for each row. Returns (1, L, H, D).
    Each row costs P^2/2 + sum_k T_k (P + T_k) pairs of tokens; no (L, L) mask is made and nothing masked out is computed
    but the padding of short rollouts to the row's longest."""
    outputs, start = [], 0
    for P, lengths in segments:
        n, T, middle, end = len(lengths), max(lengths), start + P, start + P + sum(lengths)
        prompt = [x[:, :, start:middle] for x in (q, k, v)]  # (1, H, P, D)
        o = F.scaled_dot_product_attention(*prompt, is_causal=True, scale=scaling, enable_gqa=True)
        outputs.append(o[0].transpose(0, 1))  # (P, H, D)
        own = [
            nn.utils.rnn.pad_sequence(x[0, :, middle:end].transpose(0, 1).split(lengths), batch_first=True)
            for x in (q, k, v)
        ]  # (n, T, H, D)
        q_o, k_o, v_o = (x.transpose(1, 2) for x in own)  # (n, H, T, D)
        k_o, v_o = (torch.cat([p.expand(n, -1, -1, -1), x], dim=2) for p, x in ((prompt[1], k_o), (prompt[2], v_o)))
        mask = torch.ones(T, P + T, dtype=torch.bool, device=q.device).tril(P)  # padding stands behind every real query
        o = F.scaled_dot_product_attention(q_o, k_o, v_o, attn_mask=mask, scale=scaling, enable_gqa=True)
        real = torch.arange(T, device=q.device) < torch.tensor(lengths, device=q.device)[:, None]  # (n, T)
        outputs.append(o.transpose(1, 2)[real])  # (sum T_k, H, D)
        start = end
    return torch.cat(outputs)[None], None


class LogprobHead(nn.Linear):
    """The language-model head, returning log-probabilities of given tokens, never a (N, V) tensor of logits.

    Each chunk of CHUNK positions makes its logits in float32, keeps two numbers a position and is recomputed in the
    backward pass, so the head's peak is about 3 * CHUNK * V * 4 bytes whatever N is: 0.9 GB for a vocabulary of 152,064.
    All chunks run inside one module call, so FSDP gathers the weight once."""

    CHUNK = 512

    def forward(self, hidden, targets, banned, temperature):
        """hidden (N, D), targets (N,), banned (B,) -> logp (N,), entropy (N,), both float32."""
        parts = [
            checkpoint(_chunk_logps, h, self.weight, t, banned, temperature, use_reentrant=False)
            for h, t in zip(hidden.split(self.CHUNK), targets.split(self.CHUNK))
        ]
        return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


def _chunk_logps(hidden, weight, targets, banned, temperature):
    logits = (hidden @ weight.t()).float() / temperature  # (C, V)
    logits = logits.index_fill(-1, banned, float("-inf"))  # the sampler could not draw these
    logp = logits.log_softmax(-1)
    entropy = torch.special.entr(logp.detach().exp()).sum(-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy


class Policy(nn.Module):
    """The FSDP root: its forward does everything from token ids and pixels to log-probabilities.

    (Submodules called outside their root's forward would read sharded parameters.) Wraps a transformers model laid out as
    Qwen2.5-VL is: `.model.language_model`, `.model.get_image_features`, `.model.get_rope_index`, `.lm_head`."""

    def __init__(self, model: nn.Module):
        from transformers import AttentionInterface

        super().__init__()
        AttentionInterface.register("shared_prefix", shared_prefix_attention)
        model.model.language_model.config._attn_implementation = "shared_prefix"
        model.lm_head.__class__ = LogprobHead  # the same parameter under the same name, another forward
        self.model = model

    def forward(self, rows: Sequence[Row], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi(o_ik,t | x_i, o_ik,<t) at `temperature`, and the entropy there (no gradient), both (N,) float32, for all
        tokens of all rollouts of all rows, end to end."""
        body, config = self.model.model, self.model.config
        device = self.model.lm_head.weight.device
        ids, positions, keep, segments, offset = [], [], [], [], 0
        for row in rows:
            P, lengths = len(row.prompt_ids), tuple(len(o) for o in row.responses)
            is_image = (row.prompt_ids == config.image_token_id).int()[None]
            grids = torch.stack([image.grid_thw for image in row.images])
            position, _ = body.get_rope_index(row.prompt_ids[None], mm_token_type_ids=is_image, image_grid_thw=grids)
            following = position.max() + 1 + torch.cat([torch.arange(T) for T in lengths])  # every rollout starts anew
            ids.append(torch.cat([row.prompt_ids, *row.responses]))
            positions.append(torch.cat([position[:, 0], following.expand(3, -1)], dim=1))  # (3, P + sum T_k)
            start = offset + P
            for T in lengths:  # the prompt's last token predicts the first token of every rollout
                keep += [offset + P - 1, *range(start, start + T - 1)]
                start += T
            segments.append((P, lengths))
            offset = start
        ids = torch.cat(ids).to(device)[None]  # (1, L)
        positions = torch.cat(positions, dim=1).to(device)[:, None]  # (3, 1, L)
        targets = torch.cat([o for row in rows for o in row.responses]).to(device)  # (N,)

        images = {image.key: image for row in rows for image in row.images}  # each distinct picture is encoded once
        pixels = torch.cat([image.pixel_values for image in images.values()]).to(device)
        grids = torch.stack([image.grid_thw for image in images.values()]).to(device)
        features = dict(zip(images, body.get_image_features(pixels, grids).pooler_output))
        visual = torch.cat([features[image.key] for row in rows for image in row.images])

        x = body.get_input_embeddings()(ids)  # (1, L, D)
        x = x.masked_scatter((ids == config.image_token_id)[..., None], visual.to(x.dtype))
        hidden = body.language_model(
            inputs_embeds=x, position_ids=positions, attention_mask={"full_attention": None}, use_cache=False,
            segments=tuple(segments),
        ).last_hidden_state[0]  # (L, D)  # fmt: skip
        banned = torch.tensor([config.image_token_id, config.video_token_id], device=device)
        return self.model.lm_head(hidden[torch.tensor(keep, device=device)], targets, banned, temperature)


# --- Eq. 6 ---


def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """The k3 estimator of KL(pi || pi_ref) per token (http://joschu.net/blog/kl-approx.html): non-negative, unbiased.

    The log-ratio is held within +-20, so that one token the reference all but excludes can't overflow the loss."""
    d = (ref_logp.float() - logp.float()).clamp(-20.0, 20.0)
    return d.exp() - d - 1.0


def rollout_mean(lengths: torch.Tensor, n_rollouts: int) -> torch.Tensor:
    """Weights of Eq. 6's mean over rollouts of the mean over tokens: lengths (K,) -> (sum of lengths,).

    `n_rollouts` counts the GLOBAL mini-batch, so weighted sums add up over micro-batches and ranks to the one mean."""
    return (1.0 / (lengths * n_rollouts)).repeat_interleave(lengths)


def token_mean(lengths: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """The release's weights instead: one mean over all `n_tokens` tokens of the global mini-batch."""
    return torch.full((int(lengths.sum()),), 1.0 / n_tokens, device=lengths.device)


def grpo_loss(logp, old_logp, ref_logp, sampler_logp, A, weight, *, clip_low=0.2, clip_high=0.2, beta=0.01, tis_cap=2.0):
    """Minus Eq. 6 of one micro-batch, as its share of the global mini-batch. All arguments (N,): tokens, rollouts end to end.

    logp, old_logp, ref_logp, sampler_logp: log-probabilities under pi, pi_old, pi_ref and in the engine that sampled;
    A: the advantage of the token's rollout; weight: `rollout_mean`. Without a reference pass logp.detach() as ref_logp.

    pi_old and the sampler are one policy in two implementations. min(pi_old / sampler, tis_cap) corrects what bfloat16
    makes of that (truncated importance sampling, https://fengyao.notion.site/off-policy-rl); it is not in the paper, and
    is 1 where both agree. Returns the loss and its parts, weighted alike."""
    rho = (logp - old_logp).exp()
    clipped = rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    tis = (old_logp - sampler_logp).exp().clamp(max=tis_cap)
    kl = k3(logp, ref_logp)
    J = tis * torch.minimum(rho * A, clipped * A) - beta * kl  # Eq. (6); with n_s = 0 it is Eq. (3)
    parts = {"kl": kl, "clip_share": (clipped * A < rho * A).float(), "tis_weight": tis}
    return -(weight * J).sum(), {name: (weight * value).sum().detach() for name, value in parts.items()}
