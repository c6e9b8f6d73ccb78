"""How much there is to read: the lines of this project beside those of others for the same scope.

    python bench/lines.py            # ours alone; Python 3.11 and nothing else
    python bench/lines.py DIR        # and each project that is cloned in DIR; says how to clone those that are not

The scope: from a file of questions to a trained checkpoint with GRPO: reading, rollouts, reward, advantage, loss, update, the
new weights' way to the sampler, the loop around it with its flags, checkpoints, and what carries data between processes.
PATHS names the files that such a run goes through (with images, FSDP and vLLM, where a project has them) as a shell would: in a
clone `wc -l PATTERN` shows the same lines. Left out: YAML, libraries, general helpers, loggers, profilers, other backends and
model families, __init__.py but the one that picks a reward, and what could be argued either way. A file counts whole, with all
it does beyond the scope; of path:FIRST-LAST,.. those lines alone. True of one commit, so no other is counted. The columns:

    lines      all of them
    code       lines with something on them that is neither comment nor docstring
    comments   share of the lines that are not blank with a comment or a docstring on them, licence headers included

A docstring is any string that is a statement of its own. A blank line is blank inside a string, too.
"""
import argparse
import ast
import io
import shlex
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# folder in DIR -> where it is from, the commit that is counted, its day
CLONES = {
    "PeRL": ("https://github.com/zsgvivo/PeRL", "b3e09cea5ac64d964f7d679761783d1514539cc8", "2025-09-26"),
    "verl": ("https://github.com/verl-project/verl", "1dda039b9c6311889a9c9a26040677e1254814f9", "2026-08-22"),
    "EasyR1": ("https://github.com/hiyouga/EasyR1", "b44b311b669bf1fd1aa2fc36f2251482ba33cb16", "2026-07-30"),
    "trl": ("https://github.com/huggingface/trl", "f2cd57710ae345ea6428ae95363267fcf38a3dc8", "2026-07-24"),
    "nano-aha-moment": ("https://github.com/McGill-NLP/nano-aha-moment", "6cd0306dd994674f98ec2f0b07732c00c0bfe125", "2025-07-07"),
    "GRPO-Zero": ("https://github.com/policy-gradient/GRPO-Zero", "d41bb486cfe4d58bf8dbb0b8f62b3c3102af9e74", "2025-04-18"),
}
PATHS = {
    "ours": {"same scope, permutation and filter": "perl/*.py", "of that, grpo, rollout, train": "perl/{grpo,rollout,train}.py"},
    "PeRL": {
        "same scope": """verl/{protocol,trainer/main_ppo,workers/fsdp_workers}.py
            verl/single_controller/{base/decorator,base/worker,base/worker_group,base/register_center/ray,ray/base}.py
            verl/trainer/ppo/{core_algos,ray_trainer,reward}.py verl/models/transformers/{monkey_patch,qwen2_vl}.py
            verl/utils/{fsdp_utils,image_aug,dataset/rl_dataset,dataset/vision_utils,reward_score/__init__,reward_score/geo3k}.py
            verl/utils/checkpoint/{checkpoint_manager,fsdp_checkpoint_manager}.py
            verl/workers/{actor/base,actor/dp_actor,reward_manager/naive,rollout/base,rollout/vllm_rollout/vllm_rollout_spmd}.py
            verl/workers/sharding_manager/{base,fsdp_vllm}.py""",
        # where it differs from veRL 1e75fc04b, the nearest commit of veRL's history: 202 of the 210 files of verl/ are equal
        "of that, not veRL's": """verl/utils/image_aug.py verl/protocol.py:349-386
            verl/trainer/ppo/ray_trainer.py:29,642,866-867,874-890,895,897-901,907-908,914-916,923-925,944-945
            verl/utils/dataset/rl_dataset.py:134-136,178 verl/utils/dataset/vision_utils.py:29
            verl/utils/reward_score/__init__.py:52 verl/workers/rollout/vllm_rollout/vllm_rollout_spmd.py:125,279""",
        "whole tree": "**/*.py",
    },
    "verl": {
        "same scope": """verl/{protocol,trainer/main_ppo,checkpoint_engine/base,workers/engine_workers}.py
            verl/single_controller/{base/decorator,base/worker,base/worker_group,ray/base}.py
            verl/trainer/ppo/{core_algos,utils}.py verl/models/transformers/{monkey_patch,qwen2_vl}.py
            verl/trainer/ppo/v1/{agent_loop_tq,replay_buffer,trainer_base,trainer_sync,utils}.py
            verl/experimental/agent_loop/{agent_loop,single_turn_agent_loop}.py
            verl/experimental/reward_loop/{reward_loop,reward_manager/base,reward_manager/naive}.py
            verl/utils/{fsdp_utils,dataset/rl_dataset,dataset/vision_utils,reward_score/__init__,reward_score/geo3k}.py
            verl/utils/checkpoint/{checkpoint_manager,fsdp_checkpoint_manager}.py verl/workers/utils/{losses,padding}.py
            verl/workers/{config/actor,config/engine,config/model,config/optimizer,config/rollout}.py
            verl/workers/engine/{base,utils,fsdp/transformer_impl,fsdp/utils}.py verl/workers/rollout/{base,llm_server,replica}.py
            verl/workers/rollout/vllm_rollout/{bucketed_weight_transfer,utils,vllm_async_server,vllm_rollout}.py
            verl/workers/rollout/vllm_rollout/weight_update_utils.py""",
    },
    "EasyR1": {
        "same scope": """verl/{protocol,models/monkey_patch,models/transformers/qwen2_vl}.py examples/reward_function/r1v.py
            verl/single_controller/{base/decorator,base/worker,base/worker_group,base/register_center/ray,ray/base}.py
            verl/trainer/{config,core_algos,data_loader,main,ray_trainer}.py verl/workers/{config,fsdp_workers}.py
            verl/utils/{dataset,fsdp_utils,checkpoint/checkpoint_manager,checkpoint/fsdp_checkpoint_manager}.py
            verl/workers/{actor/base,actor/config,actor/dp_actor,reward/config,reward/function}.py
            verl/workers/rollout/{base,config,vllm_rollout_spmd}.py verl/workers/sharding_manager/{base,fsdp_vllm}.py""",
    },
    "trl": {
        "same scope, on transformers.Trainer": """trl/scripts/grpo.py trl/trainer/{grpo_config,grpo_trainer}.py
            trl/{distributed,generation/vllm_generation,rewards/accuracy_rewards}.py""",
    },
    "nano-aha-moment": {"text only": "{nano_r1_script,utils}.py"},
    "GRPO-Zero": {"text only, one GPU, no vLLM": "{countdown_task,data_types,grpo,train}.py"},
}  # fmt: skip


def count(source: str, only: set[int] | None = None) -> Counter:
    """Counts the lines of one Python source, or of its lines `only` (from 1): lines, filled (not blank), code, commented."""
    lines = dict(enumerate(source.removesuffix("\n").split("\n") if source else [], start=1))
    strings = [s.value for s in ast.walk(ast.parse(source)) if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
    docs = {n for s in strings if isinstance(s.value, str) for n in range(s.lineno, s.end_lineno + 1)}
    code, comments = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        covered = set(range(token.start[0], token.end[0] + 1))
        if token.type == tokenize.COMMENT:
            comments |= covered
        elif token.string.strip() and not (token.type == tokenize.STRING and covered <= docs):
            code |= covered
    filled = {n for n, line in lines.items() if line.strip() and (only is None or n in only)}
    commented = filled & (docs | comments)
    whole = len(lines if only is None else only)
    return Counter(lines=whole, filled=len(filled), code=len(filled - (commented - code)), commented=len(commented))


def files(root: Path, patterns: str) -> list[tuple[Path, set[int] | None]]:
    """The files in `root` that patterns name, and which lines of each count, None for all. Exits where one names no file."""
    found = []
    for pattern in patterns.split():
        path, _, spans = pattern.partition(":")
        (head, _, rest), ends = path.partition("{"), [span.split("-") for span in spans.split(",") if span]
        names, _, tail = rest.partition("}")
        for name in [head + name + tail for name in names.split(",")]:
            if not (these := sorted(root.glob(name))):
                raise SystemExit(f"lines.py: {root} has no {name}; is it the commit that is counted?")
            found += [(file, {n for a, *b in ends for n in range(int(a), int(*b or [a]) + 1)} or None) for file in these]
    return found


def row(name: str, what: str, root: Path, patterns: str, commit: str) -> str:
    """One line of the table."""
    total, found = Counter(), files(root, patterns)
    for file, only in found:
        with tokenize.open(file) as source:
            total += count(source.read(), only)
    share = total["commented"] / max(1, total["filled"])
    return f"| {name} | {what} | {len(found)} | {total['lines']:,} | {total['code']:,} | {share:.0%} | {commit} |"


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir", nargs="?", type=Path, help="where the other projects are cloned")
    folder, missing = p.parse_args(argv).dir, []
    print("| project | what | files | lines | code | comments | commit |\n| --- | --- | --- | --- | --- | --- | --- |")
    print(*(row("ours", what, ROOT, patterns, "this one") for what, patterns in PATHS["ours"].items()), sep="\n")
    for name, (url, commit, day) in CLONES.items() if folder else ():
        clone, said = folder / name, f"{commit[:9]}, {day}"
        head, there = ["git", "-C", clone, "rev-parse", "HEAD"], shlex.quote(str(clone))
        if not clone.is_dir():
            missing.append(f"git clone {url} {there} && git -C {there} checkout {commit}")
        elif (clone / ".git").exists() and subprocess.check_output(head, text=True).strip() != commit:
            missing.append(f"git -C {there} fetch && git -C {there} checkout {commit}")
        else:
            said += "" if (clone / ".git").exists() else " (files without .git: not checked)"
            print(*(row(name, what, clone, patterns, said) for what, patterns in PATHS[name].items()), sep="\n")
    if missing:
        print("\nNot counted, because it is not there or at another commit:\n", *missing, sep="\n    ")


if __name__ == "__main__":
    main()
