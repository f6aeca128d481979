"""The web page of a comparison, in a real browser."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from comparisons import all_notes, all_sentences, made_up
from legs import every_third
from playwright.sync_api import Browser, Page, sync_playwright

from fer_lightning.comparison.analysis import Comparison
from fer_lightning.report import page as report_page
from fer_lightning.report.protocol import protocol
from fer_lightning.report.sections import sections
from tests.report.test_report import CASES, HOSTILE, hostile

pytestmark = pytest.mark.slow  # a browser for each page

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=QUIET)
        yield browser
        browser.close()


@dataclass
class Opened:
    page: Page
    troubles: list[str]
    """Console messages, exceptions and requests other than for the file."""


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator["Opener"]:
    opener = Opener(browser, tmp_path / "report.html")
    yield opener
    for one in opener.all:
        one.page.context.close()
        assert one.troubles == []


class Opener:
    def __init__(self, browser: Browser, file: Path) -> None:
        self.browser, self.file, self.all = browser, file, list[Opened]()

    def __call__(self, c: Comparison, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
        self.file.write_text(report_page.render(c), encoding="utf-8")
        context = self.browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,  # type: ignore[arg-type]
            java_script_enabled=scripts,
        )
        page, troubles = context.new_page(), list[str]()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url != self.file.as_uri() else None)
        self.all.append(Opened(page, troubles))
        page.goto(self.file.as_uri())
        return page


def brightness(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("case", every_third(CASES))
def test_page_opens_from_disk_loads_nothing_and_fits(opened: Opener, case: str, width: int) -> None:
    c = CASES[case]()
    page = opened(c, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    for name in c.rows:
        assert page.locator(".legend .method", has_text=name).first.is_visible()
    assert "nan" not in re.sub(r"\w+nan\w*|\w*nan\w+", "", page.inner_text("main").lower())
    points = page.locator("#trade-off .view:not([hidden]) .point")
    assert points.count() == len(c.rows) - (case == "gaps")
    for point in points.all():
        box = point.locator("path").bounding_box()
        assert box
        assert 0 < box["x"] < width
    # Wide tables scroll within their box.
    for table in page.locator(".scroll").all():
        if table.is_visible():
            assert table.evaluate("box => box.getBoundingClientRect().right") <= width


def test_file_is_small_and_names_no_server() -> None:
    page = report_page.render(made_up(22, 5))
    assert len(page) < 1_000_000
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_answer_picture_and_scores_come_first(opened: Opener) -> None:
    c = made_up(5, 5, extras=True, synthetic=True)
    page = opened(c)
    assert page.locator(".synthetic").is_visible()
    headings = page.locator("h2").all_inner_texts()
    assert headings[:3] == ["Answer", "Scores", "Differences to none"]
    assert {"Differences to none", "Ranks", "Label noise", "The paper's numbers", "Cost of training"} <= set(headings)
    assert page.locator("#answer p.answer").all_inner_texts() == all_sentences(c)[:1]
    assert page.locator("#answer li").count() == page.locator("#scores ul.sentences").count() == 0
    assert page.locator("ul.sentences li").all_inner_texts() == all_sentences(c)[1:]
    assert page.locator("ul.notes li").all_inner_texts() == all_notes(c)
    for part in sections(c):
        assert page.locator(f"#{part.name.lower()} .sentences li").count() == len(part.sentences)
    assert "Friedman test: p = 0.012." in page.inner_text("#ranks")
    shown = dict(
        zip(page.locator("#protocol dt").all_inner_texts(), page.locator("#protocol dd").all_inner_texts(), strict=True)
    )
    assert shown == protocol(c)
    links = page.locator("nav a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert all(page.locator(link).count() == 1 for link in links)


def test_a_click_on_a_heading_sorts(opened: Opener) -> None:
    c = made_up(5)
    page = opened(c)
    table = page.locator("#scores table").first
    names = table.locator("tbody .method span")

    def order() -> list[str]:
        return names.all_inner_texts()

    means = c.summary.query("test_set == 'test' and metric == 'accuracy'").set_index("method")["mean"]
    head = table.get_by_role("button", name="accuracy", exact=True)
    head.click()
    assert order() == list(means.sort_values(ascending=False).index)
    assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"
    head.click()
    assert order() == list(means.sort_values().index)
    table.get_by_role("button", name="method", exact=True).click()
    assert order() == sorted(c.rows)


def test_numbers_of_the_page_are_those_of_the_comparison(opened: Opener) -> None:
    c = made_up(3, 3)
    page = opened(c)
    row = page.locator("#differences table").first.locator("tr", has_text="weighted")
    entry = c.differences.query("test_set == 'test' and metric == 'f1_macro' and method == 'weighted'").iloc[0]
    words = row.inner_text()
    for value in (entry.difference, entry.low, entry.high):
        assert f"{value * 100:+.1f}" in words
    assert f"{entry.p_holm:.3f}" in words
    # The drawn interval has the place of its numbers on the axis below it.
    ticks = page.locator("#differences .axis").first.locator("span").all()
    places = {float(tick.inner_text()): tick.bounding_box() for tick in ticks}
    centre = {value: box["x"] + box["width"] / 2 for value, box in places.items() if box}
    low, high = min(centre), max(centre)
    bar = row.locator(".plot .bar").bounding_box()
    assert bar
    for end, place in ((entry.low * 100, bar["x"]), (entry.high * 100, bar["x"] + bar["width"])):
        expected = centre[low] + (end - low) / (high - low) * (centre[high] - centre[low])
        assert place == pytest.approx(expected, abs=1.5)


def test_theme_follows_the_system_and_the_button(opened: Opener) -> None:
    page = opened(made_up(2, 1))
    assert brightness(page) > 200
    assert brightness(opened(made_up(2, 1), scheme="dark")) < 60
    button = page.locator("#theme")
    button.click()
    assert button.inner_text() == "theme: light"
    button.click()
    assert button.inner_text() == "theme: dark"
    assert brightness(page) < 60
    page.reload()
    assert brightness(page) < 60, "the choice is kept"
    button.click()
    assert brightness(page) > 200


def test_views_switch_and_a_method_is_followed(opened: Opener) -> None:
    page = opened(made_up(5))
    shares, changes = page.locator("#confusion .view").all()
    assert shares.is_visible()
    assert not changes.is_visible()
    page.get_by_role("radio", name="differences to none").check()
    assert changes.is_visible()
    assert not shares.is_visible()

    page.locator(".legend .method", has_text="focal").click()
    shown = page.locator("#scores table").first.locator("tr[data-m]")
    opacity = {row.inner_text().split()[0]: row for row in shown.all()}
    page.wait_for_timeout(300)
    assert opacity["focal"].evaluate("row => getComputedStyle(row).opacity") == "1"
    assert float(opacity["none"].evaluate("row => getComputedStyle(row).opacity")) < 0.5
    page.locator("#trade-off .view:not([hidden]) .point").first.press("Enter")
    assert page.locator(".legend [aria-pressed=true]").count() == 2


def test_points_show_their_numbers(opened: Opener) -> None:
    page = opened(made_up(5))
    assert not page.locator("#tip").is_visible()
    point = page.locator("#trade-off .view:not([hidden]) .point").first
    point.focus()
    tip = page.locator("#tip")
    assert re.fullmatch(
        r"\w+\naccuracy [\d.]+ \([\d.]+ to [\d.]+\)\nmacro F1 [\d.]+ \([\d.]+ to [\d.]+\)", tip.inner_text()
    )
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_errors_over_the_share_of_answered_images(opened: Opener) -> None:
    c = made_up(3)
    page = opened(c)
    chart = page.locator("#selective figure")
    assert chart.locator(".curve").count() == len(c.rows)
    table = page.locator("#selective table")
    headings = table.locator("thead th").all_inner_texts()
    tips = chart.locator("[data-tip]").evaluate_all("all => all.map(one => one.dataset.tip)")
    for name in c.rows:
        row = dict(zip(headings[1:], table.locator("tr", has_text=name).locator("td").all_inner_texts(), strict=True))
        assert [tip for tip in tips if tip.startswith(f"{name}\n")] == [
            f"{name}\n{share}: {errors} % errors" for share, errors in row.items()
        ]
    # A mark lies on its method's curve.
    on_curve = """mark => { const box = mark.querySelector(".hit").getBoundingClientRect();
        const curve = document.querySelector(`#selective .curve[data-m="${mark.dataset.m}"] path`);
        const place = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
        const matrix = curve.getScreenCTM(), length = curve.getTotalLength();
        return Math.min(...Array.from({length: 2001}, (_, k) => {
            const point = curve.getPointAtLength(length * k / 2000).matrixTransform(matrix);
            return Math.hypot(point.x - place.x, point.y - place.y); })); }"""
    for mark in chart.locator(".point").all():
        assert mark.evaluate(on_curve) < 2
    chart.locator(".point").first.press("Enter")
    assert page.locator(".legend [aria-pressed=true]").count() == 1
    assert chart.locator(".curve.on").count() == 1


def test_without_scripts_and_on_paper_everything_is_shown(opened: Opener) -> None:
    page = opened(made_up(3), scripts=False)
    assert page.locator("#confusion .view").nth(1).is_visible()
    assert not page.locator(".switch").first.is_visible()
    page = opened(made_up(3))
    page.emulate_media(media="print")
    assert page.locator("#confusion .view").nth(1).is_visible()
    assert not page.locator("nav").is_visible()


@pytest.mark.nightly
def test_names_of_points_cover_nothing(opened: Opener) -> None:
    page = opened(made_up(22))
    boxes = page.evaluate(
        """[...document.querySelectorAll('#trade-off .view:not([hidden]) .name')]
        .filter(name => name.style.visibility !== 'hidden').map(name => {
            const box = name.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })"""
    )
    assert len(boxes) > 3
    for place, a in enumerate(boxes):
        for b in boxes[place + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_hostile_names_stay_words(opened: Opener) -> None:
    name = HOSTILE + "\"'><script>window.hacked = 1</script>"
    page = opened(hostile(made_up(2, 3, names=("none", name)), name))
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert page.locator(".legend .method").nth(0).inner_text() in (name, "none")
    assert name in page.title()


def test_only_the_pages_own_script_may_run(browser: Browser, tmp_path: Path) -> None:
    """Were a name not escaped, the content policy would still stop it."""
    file = tmp_path / "report.html"
    file.write_text(report_page.render(made_up(2, 1)).replace("</main>", "<script>window.hacked = 1</script></main>"))
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("window.hacked") is None
    assert page.locator("html.scripted").count() == 1
    page.context.close()
