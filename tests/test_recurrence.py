"""The recurrence is right: batched equals stepwise, nothing crosses an episode's border or an environment's."""

import math

import pytest
import torch

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
    """obs (T, N, D) of a real task, dones (T, N) at random, a random state."""
    args = small()
    envs = script.make_envs(args, args.env_id, N, "cpu")
    obs = [envs.reset(seed=1)[0], *(envs.step(torch.randint(0, 2, (N,)))[0] for _ in range(T - 1))]
    return torch.stack(obs), (torch.rand(T, N) < 0.3).float(), tuple(torch.randn(2, 1, N, 8))


def read(agent, obs, dones, state):
    return agent.get_states(obs.flatten(0, 1), state, dones.flatten())[0].view(*dones.shape, -1)


def test_batched_recurrence_equals_single_steps_and_shifted_dones_do_not(agent, batch):
    obs, dones, state = batch
    weights, results = torch.randn(T * N, 8), []
    for seen, length in ((dones, T), (dones, 1), (dones.roll(1, 0), T)):
        hidden, now = [], state
        for x, done in zip(obs.split(length), seen.split(length), strict=True):
            part, now = agent.get_states(x.flatten(0, 1), now, done.flatten())
            hidden.append(part)
        loss = (torch.cat(hidden) * weights).sum() + now[1].sum()
        gradients = torch.autograd.grad(loss, [*agent.encoder.parameters(), *agent.lstm.parameters()])
        results.append((torch.cat(hidden), now, gradients))
    batched, single, shifted = results
    torch.testing.assert_close(batched[:2], single[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batched[2], single[2], rtol=1e-4, atol=1e-5)
    assert (single[0] - shifted[0]).abs().max() > 1e-3


def test_recurrence_is_torchs_lstm_of_one_environment_from_zero_at_each_reset(agent, batch):
    obs, dones, state = batch
    hidden = read(agent, *batch)
    for n in range(N):
        h = tuple(s[:, n] for s in state)
        for t in range(T):
            h = tuple(torch.zeros_like(s) for s in h) if dones[t, n] else h
            expected, h = agent.lstm(agent.encoder(obs[t, n][None]), h)
            torch.testing.assert_close(hidden[t, n], expected[0], rtol=1e-5, atol=1e-6)


def test_written_back_propagation_is_that_of_finite_differences(script):
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((4, 3, 8), (8, 2), (3, 2), (3, 2))]
    not_first = (torch.rand(4, 3, 1) > 0.3).double()
    assert torch.autograd.gradcheck(lambda *x: script.LSTMRecurrence.apply(*x, not_first), inputs)


def test_memoryless_forgets_at_every_step(agent, batch):
    forgetting = read(agent, batch[0], torch.ones(T, N), batch[2])
    agent.memoryless = True
    torch.testing.assert_close(read(agent, batch[0], torch.zeros(T, N), batch[2]), forgetting)


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.0])
def test_random_moves_are_in_the_policy(agent, batch, eps):
    """Frequencies equal exp(logprob), entropy is the mixture's; eps = 1 is uniform and teaches the actor nothing."""
    agent.rand_move_eps.fill_(eps)
    x = batch[0][0, :1]
    logits = agent.actor(agent.get_states(x, agent.initial_state(1), torch.ones(1))[0])[0]
    many, draws = len(logits), 20_000
    inputs = x.expand(many, -1), agent.initial_state(many), torch.ones(many)
    _, logprob, entropy, _, _ = agent.get_action_and_value(*inputs, torch.arange(many))
    probs = logprob.exp()
    torch.testing.assert_close(probs, (1 - eps) * logits.softmax(-1) + eps / many)
    torch.testing.assert_close(entropy[0], -(probs * logprob).sum())
    drawn = agent.get_action_and_value(x.expand(draws, -1), agent.initial_state(draws), torch.ones(draws))[0]
    assert (drawn.bincount(minlength=many) / draws - probs).abs().max() < 4 * math.sqrt(0.25 / draws)
    if eps == 1.0:
        torch.testing.assert_close(entropy, torch.full((many,), math.log(many)))
        agent.zero_grad()
        (logprob * torch.randn(many)).sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in agent.actor.parameters())


def test_distinct_rows_are_exact(script):
    views = torch.randint(0, 3, (500, 4), dtype=torch.uint8)
    for x in (views, views * 0.1):
        rows, index = script.distinct(x)
        assert torch.equal(rows[index], x) and len(rows) == len(x.unique(dim=0))
