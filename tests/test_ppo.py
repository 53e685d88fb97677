"""gae, ppo_loss, and what `train` makes of them: compared with slow, obvious counterparts, or with hand numbers."""

import glob
import math
import types

import pytest
import torch
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
    a = (advantages - advantages.mean()) / (advantages.std() + 1e-8) if norm_adv else advantages
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


def spy(monkeypatch, script, name, after):
    """Call after(inputs, output) each time `train` calls the script's function `name`."""
    real = getattr(script, name)

    def wrapper(*inputs):
        output = real(*inputs)
        after(inputs, output)
        return output

    monkeypatch.setattr(script, name, wrapper)


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
    ratios = []
    spy(monkeypatch, script, "ppo_loss", lambda i, _: ratios.append((i[0] - i[3]).exp().detach()))
    real = script.to_sequences

    def late(x, seq_len):
        if x.is_floating_point():  # dones are the first of its columns
            assert set(x[..., 0].unique().tolist()) <= {0.0, 1.0}
            x[..., 0] = x[..., 0].roll(1, 0)
        return real(x, seq_len)

    monkeypatch.setattr(script, "to_sequences", late)
    script.train(small(num_minibatches=1, update_epochs=1, total_timesteps=64 * 20, learning_rate=0.02))
    assert max((ratio - 1).abs().max() for ratio in ratios) > 1e-3


def test_state_is_zero_exactly_at_first_observations(monkeypatch, probe):
    """The counter environment shows its step within the episode; what enters the network is zero exactly at step 1."""
    import ppo_lstm_cartpole_novel as script

    seen = []
    real_states, real_recurrence = script.Agent.get_states, script.LSTMRecurrence.apply

    def recurrence(projected, weight, h, c, keep):
        if len(keep) == 1:  # a step of the rollout
            seen[-1] += ((h * keep[0]).abs().sum(1),)
        return real_recurrence(projected, weight, h, c, keep)

    def get_states(self, x, state, done, index=None):
        if len(done) == state[0].shape[1]:
            seen.append((x[:, 0],))
        return real_states(self, x, state, done, index)

    monkeypatch.setattr(script, "LSTMRecurrence", types.SimpleNamespace(apply=recurrence))
    monkeypatch.setattr(script.Agent, "get_states", get_states)
    script.train(CartPoleArgs(env_id="ProbeCounter-v0", num_envs=3, num_steps=32, total_timesteps=192, seq_len=8))
    steps, states = (torch.stack(column) for column in zip(*[row for row in seen if len(row[0]) == 3], strict=True))
    assert (steps == 1).any() and (steps > 1).any()
    assert torch.equal(steps == 1, states == 0)


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


def test_nan_reward_ends_the_run_and_spares_the_checkpoint(monkeypatch, probe, capsys):
    import ppo_lstm_cartpole_novel as script

    monkeypatch.setattr(script, "Args", CartPoleArgs)
    flags = ["--env-id", "ProbeNanReward-v0", "--save-every", "1", "--total-timesteps", "2560", "--num-envs", "4"]
    assert script.main([*flags, "--num-steps", "32"]) == 1
    assert "not finite" in capsys.readouterr().err
    saved = glob.glob("runs/*/agent_*.pt")
    assert saved
    for path in saved:
        agent = script.load_checkpoint(path)["agent"]
        assert all(torch.isfinite(weight).all() for weight in agent.values())


def test_seed_reaches_everything(script, small):
    weights = [script.train(small(seed=seed), run_dir=f"run{i}")[0].state_dict() for i, seed in enumerate((1, 1, 2))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
