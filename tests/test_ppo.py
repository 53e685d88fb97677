"""gae, ppo_loss, and what `train` makes of them, compared with slow, obvious counterparts."""

import functools
import itertools
import math

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from conftest import SMALL, spy
from gymnasium import spaces

import envs as task_envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

T, N, NO_RESULTS = 9, 4, {"argmax": {}, "sampled": {}}


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_gae_is_the_sum_of_discounted_errors(script, gamma, lam):
    torch.manual_seed(0)
    rewards, values, next_value = torch.randn(T, N), torch.randn(T, N), torch.randn(N)
    dones, next_done = (torch.rand(T, N) < 0.3).float(), (torch.rand(N) < 0.5).float()
    advantages, returns = script.gae(rewards, values, dones, next_value, next_done, gamma, lam)
    ends, following = torch.cat((dones[1:], next_done[None])), torch.cat((values[1:], next_value[None]))
    for t, n in itertools.product(range(T), range(N)):
        expected = 0.0
        for u in range(t, T):
            delta = rewards[u, n] + gamma * following[u, n] * (1 - ends[u, n]) - values[u, n]
            expected += (gamma * lam) ** (u - t) * delta.item()
            if ends[u, n]:
                break
        assert advantages[t, n].item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(returns, advantages + values)


@pytest.mark.parametrize(("clip_vloss", "norm_adv"), [(True, False), (False, True)])
def test_loss_by_hand(script, small, clip_vloss, norm_adv):
    torch.manual_seed(0)
    args = small(clip_vloss=clip_vloss, norm_adv=norm_adv, ent_coef=0.1, vf_coef=0.7)
    new, entropy, newvalue, old, advantages, returns, values = torch.randn(7, 20) * 0.5
    loss, stats = script.ppo_loss(new, entropy, newvalue, old, advantages, returns, values, args)
    a = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8) if norm_adv else advantages
    losses, clipped, kls = [], [], []
    columns = (x.tolist() for x in (new - old, a, newvalue, values, returns, entropy))
    for logratio, a, v, old_v, ret, h in zip(*columns, strict=True):
        ratio, error = math.exp(logratio), (v - ret) ** 2
        inside = min(max(ratio, 1 - args.clip_coef), 1 + args.clip_coef)
        if clip_vloss:
            error = max(error, (old_v + min(max(v - old_v, -args.clip_coef), args.clip_coef) - ret) ** 2)
        losses.append(-min(ratio * a, inside * a) + 0.7 * 0.5 * error - 0.1 * h)
        clipped.append(ratio != inside)
        kls.append(ratio - 1 - logratio)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert stats["clipfrac"].item() == pytest.approx(np.mean(clipped))
    assert stats["approx_kl"].item() == pytest.approx(np.mean(kls), rel=1e-4)


@pytest.mark.parametrize("control", ["none", "memoryless", "late reset"])
def test_importance_ratio_is_one_before_the_first_update(script, small, monkeypatch, control):
    """The update replays the rollout: stored states, resets, random moves. A reset one step late is seen."""
    errors, real = [], script.Agent.get_action_and_value
    def note(inputs, _):
        newlogprob, _, newvalue, logprobs, _, _, value, *_ = inputs
        errors.append(((newlogprob - logprobs).exp() - 1).abs().max() + (newvalue - value).abs().max())
    def late(self, x, state, done, *rest):
        return real(self, x, state, done.view(-1, state[0].shape[1]).roll(1, 0).flatten(), *rest)
    spy(monkeypatch, script, "ppo_loss", note)
    if control == "late reset":
        monkeypatch.setattr(script.Agent, "get_action_and_value", late)
    flags = {"num_minibatches": 1, "update_epochs": 1, "total_timesteps": 64 * 20, "rand_move_eps": 0.1}
    script.train(small(**flags, learning_rate=0.02, clip_vloss=True, memoryless=control == "memoryless"))
    assert len(errors) == 20 and (max(errors) > 1e-3 if control == "late reset" else max(errors) < 1e-5)


class Numbered(probes.Probe):
    """An endless environment whose observation says its step t of the rollout of 16, and which of four it is."""

    length = 10**6
    def __init__(self, n, dtype):
        self.n, self.action_space, self.observation_space = n, spaces.Discrete(2), spaces.Box(0, 9, (4,), dtype)
    def see(self):
        return [self.t % 8, self.n, self.t // 8 % 2, 0]  # MiniGrid's object, colour, state; direction


def test_minibatches_are_consecutive_steps_of_one_environment(script, small, monkeypatch):
    seen, rollout, real = [], [], script.Agent.get_action_and_value
    dtype = np.uint8 if "minigrid" in script.__file__ else np.float32
    four = [functools.partial(Numbered, n, dtype) for n in range(4)]
    vec = task_envs.TensorVectorEnv(gym.vector.SyncVectorEnv(four, autoreset_mode="SameStep"), "cpu")
    monkeypatch.setattr(script, "make_envs", lambda *_: vec)
    def note(self, x, state, done, action=None, index=None):
        cells = (x if index is None else x[index]).long().view(8, -1, 4)  # (L, M, D)
        seen.append((8 * cells[..., 2] + cells[..., 0], cells[..., 1], state[0][0].clone()))
        return real(self, x, state, done, action, index)
    monkeypatch.setattr(script.Agent, "get_action_and_value", note)
    spy(monkeypatch, script, "gae", lambda _, output: rollout.append(output))
    spy(monkeypatch, script, "ppo_loss", lambda inputs, _: seen.append(inputs[4:6]))
    monkeypatch.setattr(script, "evaluate", lambda *_: NO_RESULTS)
    script.train(small(total_timesteps=192, norm_value=False))
    assert len(seen) == 2 * 3 * 2 * 2  # two notes of each minibatch; 3 rollouts, 2 epochs, 2 minibatches
    for k in range(0, len(seen), 4):  # an epoch
        places = []
        advantages, returns = rollout[k // 8]
        for (t, n, h), used in (seen[k : k + 2], seen[k + 2 : k + 4]):
            assert (t[1:] == t[:-1] + 1).all() and (n == n[:1]).all() and (t[0] % 8 == 0).all()
            assert torch.equal(used[0].view_as(t), advantages[t, n]) and torch.equal(used[1].view_as(t), returns[t, n])
            assert k >= 8 or torch.equal((h == 0).all(1), t[0] == 0)  # only the run's first states are zero
            places += zip(t.flatten().tolist(), n.flatten().tolist(), strict=True)
        assert sorted(places) == list(itertools.product(range(16), range(4)))


def final_rollout(monkeypatch, env_id, **overrides):
    """Train on a probe and return what `gae` was given last: bootstrapped rewards, values, dones."""
    script, given = ppo_lstm_cartpole_novel, []
    spy(monkeypatch, script, "gae", lambda inputs, _: given.append([x.clone() for x in inputs[:3]]))
    monkeypatch.setattr(script, "evaluate", lambda *_: NO_RESULTS)
    script.train(probes.arguments(script, env_id=f"My/{env_id}-v0", **overrides))
    return given[-1]


def test_states_are_handed_over_and_done_is_one_exactly_at_first_observations(monkeypatch):
    seen = []
    def note(inputs, _):
        _, x, state, done, *_ = inputs
        if len(done) == 3:  # a step of the rollout
            seen.append((x[:, 0] == 1, done == 1, state[0].abs().sum((0, 2)) == 0))
    spy(monkeypatch, ppo_lstm_cartpole_novel.Agent, "get_states", note)
    final_rollout(monkeypatch, "Counter", num_envs=3, num_steps=32, total_timesteps=192)
    first, done, zero = (torch.stack(column) for column in zip(*seen, strict=True))
    assert torch.equal(first, done) and first[1:].any() and not first.all() and zero[0].all() and not zero[1:].any()


@pytest.mark.parametrize(("env_id", "last"), [("TimeLimit", 11.0), ("BothFlags", 0.0)])
def test_truncation_bootstraps_from_the_state_that_is_not_reset_and_termination_does_not(monkeypatch, env_id, last):
    """A stub whose value is x + its hidden counter. After 5 steps the final observation is the sixth, and shows 5."""
    def get_states(self, x, state, done, index=None):
        count, hidden = state[0][0, :, :1], []
        for keep in (1 - done).view(-1, count.shape[0], 1):
            count = count * keep + 1
            hidden.append(count.expand(-1, self.lstm.hidden_size))
        return torch.cat(hidden), (hidden[-1][None], state[1])
    agent = ppo_lstm_cartpole_novel.Agent
    monkeypatch.setattr(agent, "get_states", get_states)
    monkeypatch.setattr(agent, "get_value", lambda self, x, s, d: x[:, 0] + self.get_states(x, s, d)[0][:, 0])
    rewards, _, dones = final_rollout(monkeypatch, env_id, num_envs=2, total_timesteps=32, gamma=0.5)
    expected = torch.ones(16, 2)
    expected[4::5] += 0.5 * last  # reward 1 each step, and gamma * (the value of the final observation)
    torch.testing.assert_close(rewards, expected)
    assert dones[:, 0].nonzero().flatten().tolist() == [0, 5, 10, 15]


def test_the_kl_divergence_ends_updates_and_steers_the_learning_rate(script, small, monkeypatch):
    """Slower after an update that went too far, faster below half of the goal, within limits. The first step counts."""
    kls, rates, rollouts, lr, expected = [0, 0.04, 0.19, 0.21, 0.1, *[1] * 7, *[0] * 14, *[1] * 13], [], [], 2e-3, []
    spy(monkeypatch, torch.optim.Adam, "step", lambda inputs, _: rates.append(inputs[0].param_groups[0]["lr"]))
    spy(monkeypatch, script, "gae", lambda *_: rollouts.append(1))
    spy(monkeypatch, script, "ppo_loss", lambda _, output: output[1]["approx_kl"].fill_(kls[len(rollouts) - 1]))
    flags, moves = {"desired_kl": 0.1, "learning_rate": 2e-3, "total_timesteps": 64 * 13, "num_minibatches": 1}, []
    spy(monkeypatch, script.Agent, "get_logprobs", lambda inputs, _: moves.append(inputs[0].rand_move_eps.item()))
    for anneal in (False, True, True):  # the limits fall to zero, and so do random moves
        script.train(small(anneal_lr=anneal, anneal_moves=True, **flags))
    for i, kl in enumerate(kls):
        frac = 1 - i % 13 / 13 if i >= 13 else 1
        lr = min(max(lr if i % 13 else 2e-3, 3e-4 * frac), 5e-3 * frac)
        expected += [lr] * (1 if kl > 0.2 * frac else 2)
        lr *= 1 / 1.5 if kl > 0.2 * frac else 1.5 if kl < 0.05 * frac else 1
    assert [*rates, moves[-1]] == pytest.approx([*expected, 0.1 / 13])


def test_the_critic_predicts_standardised_returns(script, small, monkeypatch):
    """By running statistics of returns, in units of which the loss sees them; the 20, 40, ... added meet the floor."""
    rollouts, losses, mean, var, h = [], [], 0.0, 1.0, torch.ones(8)
    spy(monkeypatch, script, "gae", lambda _, output: rollouts.append(output[1].add_(20 * len(rollouts)).double()))
    spy(monkeypatch, script, "ppo_loss", lambda inputs, _: losses.append(inputs[5].double()))
    agent, _ = script.train(small(norm_value=True, total_timesteps=192, num_minibatches=1, update_epochs=1))
    for i, (returns, used) in enumerate(zip(rollouts, losses, strict=True)):
        mean += (returns.mean() - mean) / (i + 1)
        var += (max(((returns - returns.mean()) ** 2).mean(), (returns**2).mean() / 16) + 1e-6 - var) / (i + 1)
        torch.testing.assert_close(used.sort()[0], (returns / var**0.5).flatten().sort()[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(agent.value(h), agent.critic(h)[0] * float(var) ** 0.5 + float(mean))
    assert script.train(small(norm_value=False, total_timesteps=192))[0].return_stats.tolist() == [0, 1]


def test_what_a_cell_of_the_view_shows_first_is_paid_once_an_episode(monkeypatch):
    """Against sets. The bonus falls with the rate, and what ends an episode is not paid."""
    script, steps, given, seen = ppo_lstm_minigrid, [], [], [set() for _ in range(4)]
    spy(monkeypatch, task_envs.MemoryVectorEnv, "step", lambda _, out: steps.append([x.clone() for x in out[:4]]))
    spy(monkeypatch, script, "gae", lambda inputs, _: given.extend(inputs[0].clone()))
    script.train(script.Args(**SMALL, env_id="MiniGrid-MemoryS7-v0", view_size=5, novelty_coef=0.5, cuda=False))
    for i, (rewards, (views, paid, terminated, truncated)) in enumerate(zip(given, steps, strict=False)):
        for n, view in enumerate(views.tolist()):
            cells = set(enumerate(zip(view[:-1:3], view[1::3], view[2::3], strict=True)))
            done = bool(terminated[n] or truncated[n])
            new, seen[n] = (0 if done else len(cells - seen[n])), (cells if done else seen[n] | cells)
            assert rewards[n].item() == pytest.approx(paid[n].item() + new * 0.5 * (1 - i // 16 / 4), abs=1e-6)
    assert len(given) == 64 and max(map(len, seen)) > 30
