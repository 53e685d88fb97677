"""gae, ppo_loss, and what `train` makes of them: compared with slow, obvious counterparts, or with hand numbers."""

import itertools
import math
import types

import numpy as np
import pytest
import torch
from conftest import same, spy
from gymnasium import spaces
from probes import CartPoleArgs

T, N = 9, 4


def slow_advantage(rewards, values, dones, next_value, next_done, gamma, lam, t, n):
    """The sum of (gamma lambda)^k delta_{t+k} to the end of the episode, term by term."""
    ends = torch.cat((dones[1:], next_done[None]))
    following = torch.cat((values[1:], next_value[None]))
    total = 0.0
    for k in range(len(rewards) - t):
        u = t + k
        ended = bool(ends[u, n])
        total += (gamma * lam) ** k * (rewards[u, n] + gamma * following[u, n] * (not ended) - values[u, n])
        if ended:
            break
    return total


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_gae_is_the_sum_of_discounted_errors(script, gamma, lam):
    torch.manual_seed(0)
    rewards, values, next_value = torch.randn(T, N), torch.randn(T, N), torch.randn(N)
    dones, next_done = (torch.rand(T, N) < 0.3).float(), (torch.rand(N) < 0.5).float()
    advantages, returns = script.gae(rewards, values, dones, next_value, next_done, gamma, lam)
    for t in range(T):
        for n in range(N):
            expected = slow_advantage(rewards, values, dones, next_value, next_done, gamma, lam, t, n)
            assert advantages[t, n].item() == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(returns, advantages + values)


def test_gae_with_lambda_one_is_the_return_minus_the_value(script):
    rewards, values = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.5], [0.25], [4.0]])
    _, returns = script.gae(rewards, values, torch.zeros(3, 1), torch.tensor([10.0]), torch.zeros(1), 0.5, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[1 + 1 + 0.75 + 1.25], [2 + 1.5 + 2.5], [3 + 5.0]]))


def test_gae_by_hand_with_a_done_in_the_middle(script):
    """gamma 0.5, lambda 0.5: the episode ends with step 1 (dones[2] = 1), and step 2 begins another."""
    rewards, values = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[2.0], [4.0], [8.0]])
    dones = torch.tensor([[0.0], [0.0], [1.0]])
    advantages, _ = script.gae(rewards, values, dones, torch.tensor([16.0]), torch.zeros(1), 0.5, 0.5)
    #   t = 2: 1 + 0.5 * 16 - 8 = 1;  t = 1: 1 - 4 = -3;  t = 0: 1 + 0.5 * 4 - 2 + 0.25 * -3 = 0.25
    torch.testing.assert_close(advantages, torch.tensor([[0.25], [-3.0], [1.0]]))


@pytest.mark.parametrize("clip_vloss", [True, False])
@pytest.mark.parametrize("norm_adv", [True, False])
def test_loss_step_by_step(script, small, clip_vloss, norm_adv):
    torch.manual_seed(0)
    args = small(clip_vloss=clip_vloss, norm_adv=norm_adv, ent_coef=0.1, vf_coef=0.7)
    new, entropy, newvalue, old, advantages, returns, values = torch.randn(7, 20) * 0.5
    loss, stats = script.ppo_loss(new, entropy, newvalue, old, advantages, returns, values, args)
    a = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8) if norm_adv else advantages
    total, clipped = 0.0, 0
    for i in range(20):
        ratio = math.exp(new[i] - old[i])
        inside = min(max(ratio, 1 - args.clip_coef), 1 + args.clip_coef)
        clipped += ratio != inside
        policy = -min(ratio * a[i].item(), inside * a[i].item())
        error = (newvalue[i] - returns[i]).item() ** 2
        if clip_vloss:
            step = min(max((newvalue[i] - values[i]).item(), -args.clip_coef), args.clip_coef)
            error = max(error, (values[i].item() + step - returns[i].item()) ** 2)
        total += policy + 0.7 * 0.5 * error - 0.1 * entropy[i].item()
    assert loss.item() == pytest.approx(total / 20, rel=1e-4)
    assert stats["clipfrac"].item() == pytest.approx(clipped / 20)
    assert all(not value.requires_grad for value in stats.values())


@pytest.mark.parametrize("memoryless", [False, True])
def test_importance_ratio_is_one_before_the_first_update(script, small, monkeypatch, memoryless):
    """The update replays what the rollout did: stored states, resets, random moves, everything; values too."""
    ratios, values = [], []

    def note(inputs, _):
        newlogprob, _, newvalue, logprobs, _, _, value, *_ = inputs
        ratios.append((newlogprob - logprobs).exp().detach())
        values.append((newvalue - value).detach())

    spy(monkeypatch, script, "ppo_loss", note)
    args = small(num_minibatches=1, update_epochs=1, total_timesteps=64 * 20, num_steps=16, rand_move_eps=0.1,
                 learning_rate=0.02, memoryless=memoryless)  # fmt: skip
    script.train(args)
    assert len(ratios) == 20
    assert all((ratio - 1).abs().max() < 1e-5 for ratio in ratios)
    assert all(error.abs().max() < 1e-5 for error in values)


def test_ratio_test_has_teeth(script, small, monkeypatch):
    """The same test sees a reset that comes one step late."""
    ratios, real = [], script.Agent.get_action_and_value
    spy(monkeypatch, script, "ppo_loss", lambda i, _: ratios.append((i[0] - i[3]).exp().detach()))

    def late(self, x, state, done, *rest):
        return real(self, x, state, done.view(-1, state[0].shape[1]).roll(1, 0).flatten(), *rest)

    monkeypatch.setattr(script.Agent, "get_action_and_value", late)
    script.train(small(num_minibatches=1, update_epochs=1, total_timesteps=64 * 20, learning_rate=0.02))
    assert max((ratio - 1).abs().max() for ratio in ratios) > 1e-3


class Numbered:
    """Four endless environments whose observation says its step t of the rollout of 16, and its environment n."""

    num_envs, single_action_space = 4, spaces.Discrete(2)

    def __init__(self, dtype):
        self.single_observation_space = spaces.Box(0, 9, (4,), dtype)

    def reset(self, seed=None, options=None):
        self.t = 0
        return self.look(), {}

    def look(self):
        obs = [[self.t % 8, n, self.t // 8 % 2, 0] for n in range(4)]  # MiniGrid's object, colour, state; direction
        return torch.from_numpy(np.array(obs, self.single_observation_space.dtype))

    def step(self, actions):
        self.t += 1
        never = torch.zeros(4, dtype=torch.bool)
        return self.look(), torch.ones(4), never, never, {"final_obs": self.look(), "_final_obs": never}

    def state_dict(self):
        return None

    def close(self):
        pass


def numbered(script, monkeypatch):
    dtype = np.uint8 if "minigrid" in script.__file__ else np.float32
    monkeypatch.setattr(script, "make_envs", lambda *_: Numbered(dtype))


def test_minibatches_are_consecutive_steps_of_one_environment(script, small, monkeypatch):
    """Observations say where they are from; every step is used once an epoch, with its own action and advantage."""
    numbered(script, monkeypatch)
    seen, rollout, real = [], [], script.Agent.get_action_and_value

    def note(self, x, state, done, action=None, index=None):
        cells = (x if index is None else x[index]).long().view(8, -1, 4)  # (L, M, D)
        seen.append((8 * cells[..., 2] + cells[..., 0], cells[..., 1], state[0][0].clone()))
        return real(self, x, state, done, action, index)

    monkeypatch.setattr(script.Agent, "get_action_and_value", note)
    spy(monkeypatch, script, "gae", lambda _, output: rollout.append(output))
    spy(monkeypatch, script, "ppo_loss", lambda inputs, _: seen.append(inputs[4:6]))
    monkeypatch.setattr(script, "evaluate", lambda *_: {"argmax": {}, "sampled": {}})
    script.train(small(total_timesteps=192))
    assert len(seen) == 2 * 3 * 2 * 2  # two notes of each minibatch; 3 rollouts, 2 epochs, 2 minibatches
    for k in range(0, len(seen), 4):  # an epoch
        places = []
        advantages, returns = rollout[k // 8]
        for (t, n, h), used in (seen[k : k + 2], seen[k + 2 : k + 4]):
            assert (t[1:] == t[:-1] + 1).all() and (n == n[:1]).all() and (t[0] % 8 == 0).all()
            assert torch.equal(used[0].view_as(t), advantages[t, n]) and torch.equal(used[1].view_as(t), returns[t, n])
            assert k >= 8 or torch.equal((h == 0).all(1), t[0] == 0)  # only the run's first states are zero
            places += zip(t.flatten().tolist(), n.flatten().tolist(), strict=True)
        assert sorted(places) == [(t, n) for t in range(16) for n in range(4)]


def test_evaluation_of_an_environment_that_never_ends_ends(script, small, monkeypatch):
    numbered(script, monkeypatch)
    agent = types.SimpleNamespace(initial_state=lambda n: None, act=lambda *_: (torch.zeros(4).long(), None))
    args = small(env_id="CartPole-v1")
    result = script.evaluate(agent, args, args.env_id, "cpu")["argmax"]
    assert result["episodic_length"] == result["episodic_return"] == 10_000 and not result["exact"]


def test_state_is_zero_exactly_at_first_observations(monkeypatch, probe):
    """The counter environment shows its step in the episode: done is 1 exactly at step 1, states are handed over."""
    import ppo_lstm_cartpole_novel as script

    seen, states = [], []

    def note(inputs, output):
        _, x, state, done, *_ = inputs
        if len(done) == 3:  # a step of the rollout
            seen.append((x[:, 0] == 1, done == 1, state[0].abs().sum((0, 2)) == 0))
            states.append((state, output[1]))

    spy(monkeypatch, script.Agent, "get_states", note)
    monkeypatch.setattr(script, "evaluate", lambda *_: {"argmax": {}, "sampled": {}})
    script.train(CartPoleArgs(env_id="ProbeCounter-v0", num_envs=3, num_steps=32, total_timesteps=192, seq_len=8))
    first, done, zero = (torch.stack(column) for column in zip(*seen, strict=True))
    assert torch.equal(first, done) and first[1:].any() and not first.all() and zero[0].all() and not zero[1:].any()
    for (before, after), (following, _) in itertools.pairwise(states):  # `before` twice: next_value reads it, too
        assert same(following, after) or same(following, before)


def final_values(script, monkeypatch, args):
    """Train and return what `gae` was given: bootstrapped rewards, values, dones."""
    given = []
    spy(monkeypatch, script, "gae", lambda inputs, _: given.append([x.clone() for x in inputs[:3]]))
    script.train(args)
    return given


def test_truncation_bootstraps_from_the_state_that_is_not_reset(monkeypatch, probe):
    """A stub whose value is its hidden counter: at the time limit after 5 steps the final observation is the sixth."""
    import ppo_lstm_cartpole_novel as script

    def get_states(self, x, state, done, index=None):
        count, hidden = state[0][0, :, :1], []
        for kept in (1 - done).view(-1, count.shape[0], 1):
            count = count * kept + 1
            hidden.append(count.expand(-1, self.lstm.hidden_size))
        return torch.cat(hidden), (hidden[-1][None], state[1])

    monkeypatch.setattr(script.Agent, "get_states", get_states)
    monkeypatch.setattr(script.Agent, "get_value", lambda self, x, s, d: self.get_states(x, s, d)[0][:, 0])
    args = CartPoleArgs(env_id="ProbeTimeLimit-v0", num_envs=2, num_steps=16, total_timesteps=32, seq_len=16, gamma=0.5)
    (rewards, _, dones), = final_values(script, monkeypatch, args)  # fmt: skip
    expected = torch.ones(16, 2)
    expected[4::5] += 0.5 * 6.0  # reward 1 each step, and gamma * (the count after reading the final observation)
    torch.testing.assert_close(rewards, expected)
    assert dones[:, 0].nonzero().flatten().tolist() == [0, 5, 10, 15]


def test_both_flags_at_once_are_a_termination(monkeypatch, probe):
    import ppo_lstm_cartpole_novel as script

    args = CartPoleArgs(env_id="ProbeBothFlags-v0", num_envs=2, num_steps=16, total_timesteps=32, seq_len=16)
    (rewards, _, _), = final_values(script, monkeypatch, args)  # fmt: skip
    assert torch.equal(rewards, torch.ones(16, 2))


def test_value_under_a_time_limit_is_that_of_going_on(monkeypatch, probe):
    """Reward 1 for ever, cut every 5 steps: V -> 1 / (1 - gamma), here 2."""
    import ppo_lstm_cartpole_novel as script

    args = CartPoleArgs(env_id="ProbeTimeLimit-v0", gamma=0.5, total_timesteps=6_400, learning_rate=5e-3, anneal_lr=True)
    values = final_values(script, monkeypatch, args)[-1][1]
    assert (values - 2).abs().max() < 0.1


def test_target_kl_ends_the_update_before_the_step(script, small, monkeypatch):
    """With a tiny target only the first minibatch steps; the one that shows the excess does not."""
    steps, kls = [], []
    real = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a, **k: (steps.append(len(kls)), real(self, *a, **k))[1])
    spy(monkeypatch, script, "ppo_loss", lambda _, output: kls.append(output[1]["approx_kl"].item()))
    script.train(small(target_kl=1e-4, learning_rate=0.05, total_timesteps=64))
    assert kls[len(steps)] > 1e-4
    assert all(kl <= 1e-4 for kl in kls[: len(steps)])
    assert len(kls) == len(steps) + 1 < 4
