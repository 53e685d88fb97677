"""The recurrence is right: batched equals stepwise, nothing crosses an episode's border or an environment's."""

import math

import pytest
import torch
from torch import nn

T, N = 12, 5


@pytest.fixture
def agent(script, small):
    torch.manual_seed(0)
    args = small(rand_move_eps=0.1, encoder_size=6, hidden_layer_size=7)
    envs = script.make_envs(args, args.env_id, 1, "cpu")
    agent = script.Agent(envs.single_observation_space, int(envs.single_action_space.n), args)
    for parameter in agent.parameters():  # larger weights than the initial ones: every mistake shows
        parameter.data += 0.3 * torch.randn_like(parameter)
    return agent


@pytest.fixture
def batch(script, small):
    """obs (T, N, D) of a real task, dones (T, N) at random with a first observation here and there, a random state."""
    args = small()
    envs = script.make_envs(args, args.env_id, N, "cpu")
    next_obs, _ = envs.reset(seed=1)
    obs = []
    for _ in range(T):
        obs.append(next_obs)
        next_obs = envs.step(torch.randint(0, 2, (N,)))[0]
    dones = (torch.rand(T, N) < 0.3).float()
    return torch.stack(obs), dones, (torch.randn(1, N, 8), torch.randn(1, N, 8))


def outputs_and_gradients(agent, obs, dones, state, stepwise):
    if stepwise:
        hidden = []
        for x, done in zip(obs, dones, strict=True):
            step, state = agent.get_states(x, state, done)
            hidden.append(step)
        hidden = torch.stack(hidden)
    else:
        hidden, state = agent.get_states(obs.flatten(0, 1), state, dones.flatten())
        hidden = hidden.view(T, N, -1)
    agent.zero_grad()
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    ((hidden * weights).sum() + state[1].sum()).backward()
    return hidden.detach(), state, [p.grad.clone() for p in agent.parameters() if p.grad is not None]


@pytest.mark.parametrize("pattern", ["random", "none", "all", "first", "last"])
def test_batched_recurrence_equals_single_steps(agent, batch, pattern):
    obs, dones, state = batch
    if pattern != "random":
        dones = torch.zeros(T, N)
        dones[{"none": slice(0), "all": slice(None), "first": 0, "last": -1}[pattern]] = 1
    one, one_state, one_grads = outputs_and_gradients(agent, obs, dones, state, stepwise=True)
    all_, all_state, all_grads = outputs_and_gradients(agent, obs, dones, state, stepwise=False)
    torch.testing.assert_close(all_, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(all_state, one_state, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(all_grads, one_grads, rtol=1e-4, atol=1e-5)


def test_shifted_dones_differ(agent, batch):
    obs, dones, state = batch
    right = outputs_and_gradients(agent, obs, dones, state, stepwise=True)[0]
    shifted = outputs_and_gradients(agent, obs, dones.roll(1, 0), state, stepwise=False)[0]
    assert (right - shifted).abs().max() > 1e-3


def test_recurrence_is_torchs_lstm(script, agent, batch):
    """Segment by segment, torch.nn.LSTM from a zero state gives the same."""
    obs, dones, state = batch
    hidden = agent.get_states(obs.flatten(0, 1), state, dones.flatten())[0].view(T, N, -1)
    for n in range(N):
        h = tuple(s[:, n] for s in state)
        for t in range(T):
            if dones[t, n]:
                h = tuple(torch.zeros_like(s) for s in h)
            expected, h = agent.lstm(agent.encoder(obs[t, n][None]), h)
            torch.testing.assert_close(hidden[t, n], expected[0], rtol=1e-5, atol=1e-6)


def test_encoding_each_distinct_observation_once_changes_nothing(script, agent, small):
    """Outputs and gradients are those of encoding every row; so are those of a part of the steps, in any order."""
    args = small()
    envs = script.make_envs(args, args.env_id, 64, "cpu")
    next_obs, _ = envs.reset(seed=1)
    obs = []
    for _ in range(T):
        obs.append(next_obs)
        next_obs = envs.step(torch.randint(0, 2, (64,)))[0]
    x, state, done = torch.cat(obs), (torch.randn(1, 64, 8), torch.randn(1, 64, 8)), (torch.rand(T * 64) < 0.3).float()
    rows, index = script.distinct(x)
    weights = torch.randn(T * 64, 8)

    def run(x, *index):
        agent.zero_grad()
        _, logprob, _, _, (h, _) = agent.get_action_and_value(x, state, done, torch.ones(len(done)).long(), *index)
        hidden, _ = agent.get_states(x, state, done, *index)
        ((hidden * weights).sum() + logprob.sum()).backward()
        return hidden.detach(), h.detach(), [p.grad.clone() for p in agent.parameters() if p.grad is not None]

    torch.testing.assert_close(run(rows, index), run(x), rtol=1e-4, atol=1e-4)
    part = torch.randperm(len(x))[: 2 * 64]
    done, weights = done[part], weights[part]
    for choice in ((rows, index[part]), (x, part)):
        torch.testing.assert_close(run(*choice), run(x[part]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x", [
    torch.randint(0, 2, (600, 3), dtype=torch.uint8), torch.randint(0, 256, (600, 28), dtype=torch.uint8),
    torch.randn(600, 2), torch.tensor([[0.0], [-0.0], [math.nan], [math.inf], [0.0]]).repeat(100, 1),
    torch.zeros(1, 5),
], ids=("repeated", "bytes", "floats", "odd floats", "one"))  # fmt: skip
def test_distinct_rows_are_exact(script, x):
    rows, index = script.distinct(x)
    assert rows[index].numpy().tobytes() == x.numpy().tobytes() and rows.dtype == x.dtype
    assert len(rows) == len({row.numpy().tobytes() for row in x})


def slow_recurrence(inputs, weight_hh, h, c, not_first):
    """The equations of an LSTM, step by step, differentiated by autograd."""
    hidden = []
    for x, keep in zip(inputs, not_first, strict=True):
        i, f, g, o = (x + (h * keep) @ weight_hh.T).chunk(4, 1)
        c = f.sigmoid() * (c * keep) + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hidden.append(h)
    return torch.stack(hidden), h, c


@pytest.mark.parametrize("used", ["hidden", "h", "c", "all"])
def test_written_back_propagation_is_autograds(script, used):
    """Outputs and gradients, whichever of the three results a loss uses; and against finite differences."""
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((4, 3, 8), (8, 2), (3, 2), (3, 2))]
    not_first = (torch.rand(4, 3, 1) > 0.3).double()

    def outputs(function):
        results = dict(zip(("hidden", "h", "c"), function(*inputs, not_first), strict=True))
        return list(results.values()) if used == "all" else [results[used]]

    weights = [torch.randn_like(out) for out in outputs(slow_recurrence)]
    fast, slow = (
        (out, torch.autograd.grad(sum((o * w).sum() for o, w in zip(out, weights, strict=True)), inputs))
        for out in map(outputs, (script.LSTMRecurrence.apply, slow_recurrence))
    )
    torch.testing.assert_close(fast, slow)
    assert torch.autograd.gradcheck(lambda *x: script.LSTMRecurrence.apply(*x, not_first), inputs)


def test_draws_are_as_frequent_as_their_probabilities(script):
    """Also from a generator of one's own, which leaves torch's alone."""
    probs = torch.tensor([0.0, 0.5, 0.3, 0.2])
    for generator in (None, torch.Generator().manual_seed(1)):
        torch.manual_seed(2)
        drawn = script.sample(probs.expand(50, 1000, 4), generator)
        assert drawn.shape == (50, 1000) and drawn.dtype == torch.int64
        frequency = drawn.flatten().bincount(minlength=4) / 50_000
        assert frequency[0] == 0 and (frequency - probs).abs().max() < 0.01
    after = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(after, torch.rand(1))


def test_nothing_passes_a_reset(agent, batch):
    """Whatever is poisoned before a done, the outputs from the done on do not move, nor does anything get a gradient."""
    obs, dones, state = batch
    dones = torch.zeros(T, N)
    dones[7] = 1
    clean = agent.get_states(obs.flatten(0, 1), state, dones.flatten())[0].view(T, N, -1)
    poisoned = obs.roll(1, 0)
    poisoned[7:] = obs[7:]
    state = tuple((100 * s).requires_grad_() for s in state)
    hidden = agent.get_states(poisoned.flatten(0, 1), state, dones.flatten())[0].view(T, N, -1)
    assert torch.equal(hidden[7:], clean[7:])
    assert not torch.equal(hidden[:7], clean[:7])
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(hidden[7:].sum(), state))


def test_no_crosstalk_between_environments(script, agent, batch):
    obs, dones, state = batch
    hidden = agent.get_states(obs.flatten(0, 1), state, dones.flatten())[0].view(T, N, -1)
    other = (obs.clone(), dones.clone(), tuple(s.clone() for s in state))
    other[0][:, 2], other[1][:, 2] = obs[:, 3], 1 - dones[:, 2]
    for s in other[2]:
        s[:, 2] += 1
    moved = agent.get_states(other[0].flatten(0, 1), other[2], other[1].flatten())[0].view(T, N, -1)
    rest = [n for n in range(N) if n != 2]
    assert torch.equal(hidden[:, rest], moved[:, rest])
    assert not torch.equal(hidden[:, 2], moved[:, 2])
    own = tuple(s.clone().requires_grad_() for s in state)
    hidden = agent.get_states(obs.flatten(0, 1), own, dones.flatten())[0].view(T, N, -1)
    for gradient in torch.autograd.grad(hidden[:, rest].sum(), own):
        assert not gradient[:, 2].any()

    rewards, values, next_value = torch.randn(T, N), torch.randn(T, N), torch.randn(N)
    advantages, _ = script.gae(rewards, values, dones, next_value, torch.zeros(N), 0.9, 0.8)
    rewards[:, 2] += 5
    moved, _ = script.gae(rewards, values, other[1], next_value, torch.zeros(N), 0.9, 0.8)
    assert torch.equal(advantages[:, rest], moved[:, rest])


def test_memoryless_forgets_at_every_step(agent, batch):
    obs, _, state = batch
    agent.memoryless = True
    hidden = agent.get_states(obs.flatten(0, 1), state, torch.zeros(T * N))[0]
    agent.memoryless = False
    for x, h in zip(obs.flatten(0, 1), hidden, strict=True):
        expected = agent.get_states(x[None], agent.initial_state(1), torch.zeros(1))[0][0]
        torch.testing.assert_close(h, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5, 1.0])
def test_random_moves_are_in_the_policy(agent, batch, eps):
    """Frequencies equal exp(logprob); entropy is that of the mixture; eps = 1 is uniform and teaches the actor nothing."""
    obs, _, _ = batch
    agent.rand_move_eps = eps
    x, state, done = obs[0, :1], agent.initial_state(1), torch.ones(1)
    logits = agent.actor(agent.get_states(x, state, done)[0])[0]
    many = len(logits)
    actions = torch.arange(many)
    _, logprob, entropy, _, _ = agent.get_action_and_value(
        x.expand(many, -1), agent.initial_state(many), torch.ones(many), actions
    )
    probs = logprob.exp()
    torch.testing.assert_close(probs, (1 - eps) * logits.softmax(-1) + eps / many)
    torch.testing.assert_close(entropy[0], -(probs * logprob).sum())
    draws = 20_000
    drawn = agent.get_action_and_value(x.expand(draws, -1), agent.initial_state(draws), torch.ones(draws))[0]
    frequency = drawn.bincount(minlength=many) / draws
    assert (frequency - probs).abs().max() < 4 * math.sqrt(0.25 / draws)
    if eps == 1.0:
        torch.testing.assert_close(entropy, torch.full((many,), math.log(many)))
        agent.zero_grad()
        (logprob * torch.randn(many)).sum().backward()
        actor = [p.grad for p in agent.actor.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() and g.abs().max() == 0 for g in actor)


def test_initial_weights(script, small):
    args = small(encoder_size=0)
    envs = script.make_envs(args, args.env_id, 1, "cpu")
    agent = script.Agent(envs.single_observation_space, int(envs.single_action_space.n), args)
    recurrent = agent.lstm.weight_hh_l0
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(args.hidden_size), rtol=0, atol=1e-5)
    assert isinstance(agent.lstm, nn.LSTM)
    bias = (agent.lstm.bias_ih_l0 + agent.lstm.bias_hh_l0).view(4, -1)  # input, forget, cell, output
    assert torch.equal(bias, torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand_as(bias))
    assert all(s.shape == (1, 3, args.hidden_size) and not s.any() for s in agent.initial_state(3))
