"""The live page in a real browser: the guide, keys, links, and that what is undone is as if it had not been."""

import pytest
from browser import CHROMIUM, Browser

from visualize_memory import __main__ as viewer
from visualize_memory import episodes

CHECKPOINT = episodes.ROOT / "benchmark/checkpoints/MiniGrid-MemoryS13-v0.pt"
FUZZ = """(() => {  // 200 changes, moves and undos; after each, the address gives a fresh session the same lives
  const { session } = live, fresh = new session.constructor(JSON.parse($("live-data").textContent));
  const story = life => [life.end?.outcome, life.steps.map(s => [s.action, ...s.h])];
  const tell = of => JSON.stringify([story(of.life), story(of.twin)]);
  let seed = 1;
  const draw = n => (seed = seed * 48271 % 2147483647) % n;
  for (let n = 0; n < 200; n++) {
    session.go(draw(20));
    const kind = ["zero", "flip", "hold", "set", "swap", "wipe", "keep"][draw(7)], what = draw(10);
    const units = ["swap", "wipe", "keep"].includes(kind) ? null : [draw(32), draw(32)];
    if (what < 6) session.edit(kind, units, what < 2, kind === "set" ? {h: 0.5} : {});
    else if (what < 8) session.steer(draw(3));
    else session.undo();
    if (session.plan.edits.length > 5) session.begin(session.defaults());
    const { plan, t } = live.fromAddress(live.toAddress(session), fresh);
    fresh.begin(plan, t);
    for (const each of [session, fresh]) each.go(each.cursor, 1e9);
    if (tell(session) !== tell(fresh)) return live.toAddress(session);
  }
  return "same";
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_page(tmp_path):
    assert viewer.main([str(CHECKPOINT), "--episodes", "1", "--out", str(tmp_path)]) == 0
    url = f"file://{tmp_path}/memory.html"
    assert (tmp_path / "memory.html").stat().st_size < 3e6
    with Browser(tmp_path / "profile") as browser:
        browser.open(url)
        ends = "[live.session.life, live.session.twin].map(life => life.end.outcome)"
        assert browser.js("$('l-guide').innerText").count("the 16 marked units") == 2
        assert browser.js(ends) == ["success", "success"]
        browser.js("$('l-try').click()")
        assert browser.js(ends) == ["failure", "success"]
        browser.js("new Promise(done => setTimeout(done, 3000))")
        assert browser.js("[live.session.cursor, live.session.last()]") == [17, 17], "it played to the end"
        browser.js("$('l-undo').click()")
        assert browser.js(ends)[0] == "success"
        browser.key("ArrowUp", 38)
        browser.key("ArrowLeft", 37)
        assert [*browser.js("live.session.plan.moves").values()] == [2, 0]
        assert browser.js(FUZZ) == "same"
        look = "[live.session.cursor, ...live.session.now().h]"
        browser.open(url + "#live&cue=ball&x=4&upper=key&zero=29,4@11&flip=3@12-&set=7@12:0.5:-1.25&moves=9l,10r&t=13")
        first = browser.js(look)
        browser.js("new Promise(done => setTimeout(done, 400))")
        browser.open(url + browser.js("location.hash"))
        assert browser.js(look) == first and first[0] == 13
        browser.open(url + "#live&cue=ball&zero=29,4@11")
        assert browser.js("[live.session.cursor, live.session.now().h[29], live.session.now().c[4]]") == [11, 0, 0]
        browser.open(url + "#live&cue=dog&size=1e9&zero=999,x@3&x=200&t=-1&moves=2q&set=1@2:9:nan")
        expected = {"size": 13, "cue": "ball", "upper": "ball", "x": 10, "end": 10}
        assert browser.js("live.session.plan.options") == expected, "what makes no sense is left out"
        for width, height, dark in ((1280, 800, False), (390, 844, True)):
            browser.open(url, width, height, dark)
            assert browser.js("document.documentElement.scrollWidth") <= width and browser.js("live.ui.took") < 500
        assert browser.errors == []
