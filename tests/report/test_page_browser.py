"""The report in a real browser. Skipped, saying so, where there is no Chromium."""

import csv
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made import FALLING, U, all_profiles, config, start, term, write_page, write_published, write_run
from matplotlib.image import imread

from distill_dynamics.report import page as page_module
from distill_dynamics.report.page import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium on this machine", allow_module_level=True)

CSV = {"checkpoint_epoch_30": FALLING - 2, "checkpoint_epoch_60": U - 2, "model_best": U - 2.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = [
        write_run(root / name, conf=config(terms), **all_profiles(shift))
        for name, terms, shift in (
            ("softkd", {}, 0.0),
            ("spectral-last", {"s": term(last=1)}, 0.3),
            ("projector-last", {"p": term("ProjectorKD", last=1)}, -0.2),
        )
    ]
    return [*runs, write_published(root / "published" / "SoftKD.csv", CSV).parent]


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory):
    return write_report(folders, tmp_path_factory.mktemp("out") / "report.html")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, report):
    """Opens the report, or another file; fails at the end for a request or any word on the console."""
    said, contexts = [], []

    def open_one(path=report, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        url = path.as_uri()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != url else None)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []


def shown_and_hidden(page):
    """Of every curve in the page's figures: (figure, run, role, epoch), by whether it is on the screen."""
    found = page.evaluate(
        """() => [...document.querySelectorAll("figure[data-curves]")].flatMap((figure) =>
            JSON.parse(figure.querySelector("script").textContent).map((curve) => {
              const parts = curve.ids.map((id) => document.getElementById(id));
              const drawn = parts.map((part) => part.getClientRects().length > 0 &&
                  [...part.querySelectorAll("path, use")].some((p) => p.getClientRects().length > 0));
              return [figure.id, curve.run, curve.role, curve.epoch, drawn];
            }))"""
    )
    assert all(len(set(drawn)) == 1 for *_, drawn in found)  # a band goes with its line
    return (
        [tuple(what) for *what, drawn in found if drawn[0]],
        [tuple(what) for *what, drawn in found if not drawn[0]],
    )


def box(page, name):
    return page.get_by_role("checkbox", name=name, exact=True)


def move_to(page, figure, curve, index):
    """Move the pointer onto a point of a curve."""
    spot = page.evaluate(
        """([figure, number, index]) => {
          const svg = document.querySelector(`#${figure} svg`);
          svg.scrollIntoView({ block: "center" });
          const curves = JSON.parse(document.querySelector(`#${figure} script`).textContent);
          const [x, y] = curves[number].points[index];
          const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
          return [at.x, at.y];
        }""",
        [figure, curve, index],
    )
    page.mouse.move(*spot)
    return spot


def test_the_page_asks_for_nothing_and_complains_of_nothing(open_page):
    page = open_page()
    assert page.title() == "softkd, spectral-last, projector-last, SoftKD"
    shown, hidden = shown_and_hidden(page)
    assert len(shown) > 50
    assert hidden == []


def test_its_policy_lets_no_other_script_run_and_nothing_be_fetched(browser, report, tmp_path):
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', report.read_text())[0]
    script = '<script>document.title = "ran"</script><img src="https://example.org/x.png" onerror="1">'
    other = tmp_path / "other.html"
    other.write_text(f"<!DOCTYPE html><head>{policy}<title>still</title></head><body>{script}</body>")
    page = browser.new_page()
    refused = []
    page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    page.goto(other.as_uri())
    assert page.title() == "still"
    assert refused == [("https://example.org/x.png", "csp")]
    page.close()


def test_switching_an_epoch_off_hides_its_curves_and_no_others(open_page):
    page = open_page()
    box(page, "30").uncheck()
    shown, hidden = shown_and_hidden(page)
    assert {what[1:] for what in hidden} == {("SoftKD", "student", 30)}
    assert all(what[3] != 30 for what in shown)
    box(page, "3").uncheck()
    assert {what[3] for what in shown_and_hidden(page)[1]} == {3, 30}
    page.get_by_role("button", name="Epochs: all").click()
    assert shown_and_hidden(page)[1] == []


def test_switching_a_run_off_hides_all_that_is_its_own_in_every_figure(open_page):
    page = open_page()
    before = shown_and_hidden(page)[0]
    box(page, "softkd").uncheck()
    shown, hidden = shown_and_hidden(page)
    assert sorted(map(str, hidden)) == sorted(str(what) for what in before if what[1] == "softkd")
    figures = {what[0] for what in hidden}
    assert {"entropy_by_block", "entropy_by_method", "training_curves", "spectra_softkd"} <= figures
    assert any(what[2] == "teacher" for what in shown)
    page.get_by_role("button", name="Runs: none").click()
    shown = shown_and_hidden(page)[0]
    assert {what[1] for what in shown} == {None}  # the teacher is nobody's own


def test_a_mean_of_runs_is_gone_where_one_of_them_is_off(open_page, tmp_path):
    seeds = [
        write_run(tmp_path / f"soft-{n}", conf=config(seed=n), starts=[start(n)], **all_profiles(n / 10))
        for n in range(2)
    ]
    page = open_page(write_page(tmp_path / "report.html", *seeds, only=["entropy_by_method"]))
    mean = [what for what in shown_and_hidden(page)[0] if what[1] == "SoftKD, 2 runs"]
    assert {what[2] for what in mean} == {"student", "best"}
    box(page, "soft-1").uncheck()
    shown, hidden = shown_and_hidden(page)
    assert {what[1] for what in hidden} == {"soft-1", "SoftKD, 2 runs"}
    assert "soft-0" in {what[1] for what in shown}
    box(page, "soft-1").check()
    box(page, "3").uncheck()
    hidden = set(shown_and_hidden(page)[1])
    assert {what[1:] for what in hidden.intersection(mean)} == {("SoftKD, 2 runs", "student", 3)}


@pytest.mark.parametrize(("label", "role"), [("best checkpoint", "best"), ("teacher", "teacher")])
def test_switching_best_and_teacher_off(open_page, label, role):
    page = open_page()
    box(page, label).uncheck()
    shown, hidden = shown_and_hidden(page)
    assert {what[2] for what in hidden} == {role}
    assert role not in {what[2] for what in shown}


def test_the_readout_is_the_very_number_of_the_profile(open_page):
    page = open_page()
    readout = page.locator("#entropy_by_method .readout")
    assert readout.count() == 0
    # Curves in order of drawing: epochs 0 and 3 and the best of softkd, then of the other runs.
    move_to(page, "entropy_by_method", 0, 3)
    error = all_profiles()["student_epoch_0000"].entropy_se[3]
    assert readout.inner_text() == f"softkd, epoch 0, block 4: entropy 4.1 ± {error:.2g} bits"
    assert readout.is_visible()
    move_to(page, "entropy_by_method", 9, 1)
    assert readout.inner_text() == f"SoftKD, epoch 30, block 2: entropy {FALLING[1] - 2:.5g} bits"
    inner, frame = readout.bounding_box(), page.locator("#entropy_by_method .plot").bounding_box()
    assert inner["x"] >= frame["x"]
    assert inner["x"] + inner["width"] <= frame["x"] + frame["width"] + 1
    page.mouse.move(5, 5)
    assert readout.count() == 0
    # Nothing is read off a curve that is not shown.
    page.get_by_role("button", name="Epochs: none").click()
    box(page, "best checkpoint").uncheck()
    move_to(page, "entropy_by_method", 0, 3)
    assert readout.count() == 0


def test_the_mark_is_where_the_line_is(open_page):
    page = open_page()
    for number, index in ((0, 0), (0, 3), (4, 2)):
        x, y = move_to(page, "entropy_by_method", number, index)
        # A circle of the point's own marker lies there, as matplotlib drew it.
        dots = page.locator(f"#entropy_by_method-curve-{number}-0 use")
        dot = dots.nth(index).bounding_box()
        middle = [dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2]
        np.testing.assert_allclose(middle, [x, y], atol=1.0)


def test_arrow_keys_walk_along_and_between_the_curves_and_announce(open_page):
    page = open_page()
    page.locator("#entropy_by_method .plot").focus()
    said = page.locator("[aria-live=polite]")
    steps = {
        "Home": "softkd, epoch 0, block 1: entropy 4.4 ±",
        "ArrowRight": "softkd, epoch 0, block 2: entropy 4.3 ±",
        "End": "softkd, epoch 0, block 4: entropy 4.1 ±",
        "ArrowDown": "softkd, epoch 3, block 4: entropy 4.25 ±",
        "ArrowLeft": "softkd, epoch 3, block 3: entropy 4 ±",
        "ArrowUp": "softkd, epoch 0, block 3: entropy 4.2 ±",
    }
    before = page.evaluate("scrollY")
    for key, expected in steps.items():
        page.keyboard.press(key)
        assert said.inner_text().startswith(expected), key
        assert page.locator("#entropy_by_method .readout").inner_text() == said.inner_text()
    assert page.evaluate("scrollY") == before
    box(page, "3").uncheck()
    page.locator("#entropy_by_method .plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert said.inner_text().startswith("softkd, best (epoch 2), block 1: entropy 4.4 ±")


def test_the_keyboard_reaches_the_skip_link_the_boxes_and_the_figures(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.name || document.activeElement.className"))
    assert {"run", "epoch", "role", "plot"} <= reached
    plot = page.locator("#entropy_by_method .plot")
    assert plot.get_attribute("role") == "application"
    assert "Entropy evolution" in plot.get_attribute("aria-label")


def test_a_phone_scrolls_figures_and_tables_but_not_the_page(open_page):
    page = open_page(width=390, height=844, has_touch=True, is_mobile=True)
    page.evaluate("document.querySelectorAll('details').forEach((details) => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = page.locator("#entropy_by_method .scroll").first
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")
    # 8-point labels, the smallest, are 8.8 pixels and more.
    scale = page.evaluate(
        """[...document.querySelectorAll("figure svg")].map(
            (svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"""
    )
    assert min(scale) >= 1.09
    x, y = move_to(page, "entropy_by_block", 0, 1)
    page.touchscreen.tap(x, y)
    assert "block 2: entropy" in page.locator("#entropy_by_block .readout").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_long_words_do_not_make_a_phone_s_page_wider(open_page, tmp_path):
    starts = [start(ended=None, commit="a" * 40), start(from_epoch=2, commit="b" * 40)]
    names = ["spectralkd_first_and_last_six_layers_beta_0.2_seed_1_of_three", "other"]
    runs = [write_run(tmp_path / name, starts=starts, **all_profiles()) for name in names]
    some = ["entropy_by_block", "training_curves"]
    page = open_page(write_page(tmp_path / "long.html", *runs, only=some), width=390, height=844)
    assert "commit " + "a" * 40 in page.locator(".warnings").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_controls_are_not_printed(open_page):
    page = open_page()
    controls = page.locator("#controls")
    assert controls.is_visible()
    page.emulate_media(media="print")
    assert not controls.is_visible()
    assert not page.locator("nav").is_visible()
    picture = page.locator("figure svg").first
    assert picture.bounding_box()["width"] == pytest.approx(4.6 * 96, abs=1)  # its own size, not the page's
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_scripts_all_is_there_but_the_controls(open_page):
    page = open_page(java_script_enabled=False)
    assert not page.locator("#controls").is_visible()
    assert page.locator("figure svg").count() == page.locator("figure").count() > 8
    page.locator("#entropy_by_method summary").click()
    cell = page.locator("#entropy_by_method td", has_text=re.compile(r"^2\.4$")).first
    assert cell.is_visible()


def test_a_run_alone_has_no_choice_of_runs(open_page, folders, tmp_path):
    page = open_page(write_page(tmp_path / "one.html", folders[0], only=["entropy_evolution"]))
    assert page.locator("input[name=run]").count() == 0
    box(page, "0").uncheck()
    assert {what[2:] for what in shown_and_hidden(page)[1]} == {("student", 0)}


# --- tables, downloads, theme, paper


def column(page, caption, number):
    rows = page.locator("table", has=page.locator("caption", has_text=caption)).first.locator("tbody tr")
    return [row.locator("th, td").nth(number).inner_text() for row in rows.all()]


def downloaded(page, button, tmp_path):
    with page.expect_download() as waited:
        button.click()
    path = tmp_path / waited.value.suggested_filename
    waited.value.save_as(path)
    return path


def test_a_table_sorts_by_value_up_and_down_and_goes_back(open_page, tmp_path):
    cells = ["9.5 ± 0.2", "–", "-0.3", "10", "1,200 M", ""]
    pairs = zip(["b", "a", "2nd", "A", "e", "g"], cells, strict=True)
    rows = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in pairs)
    head = "<thead><tr><th>name</th><th>value</th></tr></thead>"
    table = f"<table><caption>Made</caption>{head}<tbody>{rows}</tbody></table>"
    script = Path(page_module.__file__).with_name("page_tools.js").read_text()
    body = f'<button id="theme"></button><p id="announcement"></p>{table}'
    setup = 'const announcement = document.getElementById("announcement");'
    made = tmp_path / "made.html"
    made.write_text(f"<!DOCTYPE html><meta charset=utf-8>{body}<script>{setup}{script}</script>")
    page = open_page(made)
    value, name = (page.get_by_role("button", name=f"Sort by {of}") for of in ("value", "name"))
    head = page.locator("th", has=value)
    given = column(page, "Made", 1)
    orders = [
        ("ascending", ["-0.3", "9.5 ± 0.2", "10", "1,200 M", "–", ""]),
        ("descending", ["1,200 M", "10", "9.5 ± 0.2", "-0.3", "–", ""]),
        (None, given),
    ]
    value.focus()
    for state, expected in orders:
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == state
        assert column(page, "Made", 1) == expected
        assert page.evaluate("document.activeElement.textContent") == "value"
    name.click()
    assert column(page, "Made", 0) == ["2nd", "a", "A", "b", "e", "g"]
    assert head.get_attribute("aria-sort") is None


def test_a_figure_downloads_as_csv_svg_and_png_without_what_is_switched_off(open_page, tmp_path):
    page = open_page(accept_downloads=True)
    figure = page.locator("#entropy_by_block")
    table = downloaded(page, figure.get_by_role("button", name="as CSV").first, tmp_path)
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file)]
    best = all_profiles()["student_best"]
    known = [row for row in rows if row["curve"] == "softkd, epoch 2"]
    assert [row["point"] for row in known] == [f"block {n}" for n in range(1, 5)]
    np.testing.assert_allclose([float(row["value"]) for row in known], best.entropy, rtol=1e-4)
    np.testing.assert_allclose([float(row["error"]) for row in known], best.entropy_se, rtol=0.05)
    assert {row["unit"] for row in rows} == {"bits"}
    box(page, "softkd").uncheck()
    drawing = downloaded(page, figure.get_by_role("button", name="as SVG"), tmp_path)
    picture = ElementTree.parse(drawing).getroot()
    assert "background: rgb(255, 255, 255)" in picture.get("style")
    ids = {element.get("id") for element in picture.iter()}
    assert {"entropy_by_block-curve-1-0"} <= ids
    assert "entropy_by_block-curve-0-0" not in ids
    image = imread(downloaded(page, figure.get_by_role("button", name="as PNG"), tmp_path))
    assert image.shape[1] == pytest.approx(4.6 * 300, abs=1)
    assert image[0, 0, :3].min() == 1  # white paper
    assert image[..., :3].min() < 0.5
    heat = page.locator("#entropy_heatmap").get_by_role("button", name="as CSV")
    with downloaded(page, heat, tmp_path).open(encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file)]
    softkd = [row for row in rows if (row["panel"], row["column"]) == ("softkd", "epoch 3")]
    assert [float(row["value"]) for row in softkd] == pytest.approx(U.tolist(), rel=1e-4)
    assert softkd[0]["row"] == "block 1"


def test_a_name_that_is_a_formula_is_text_in_a_downloaded_table(open_page, tmp_path):
    runs = [write_run(tmp_path / name, **all_profiles()) for name in ("=1+1", '@x, "y"', "-z")]
    page = open_page(write_page(tmp_path / "r.html", *runs, only=[]), accept_downloads=True)
    button = page.get_by_role("button", name=re.compile("^Of the best checkpoint .* CSV")).first
    with downloaded(page, button, tmp_path).open(encoding="utf-8-sig", newline="") as file:
        rows = [*csv.reader(file)]
    assert {"'=1+1", '\'@x, "y"', "'-z"} <= {row[0] for row in rows}
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "@")]


def test_an_interval_is_no_formula_in_a_downloaded_table(open_page, tmp_path):
    page = open_page(accept_downloads=True)
    cells = ["-0.3", "-3.22 to +3.51", "-1 (-2 to 0.5)", "-2e-05 ± 1e-06", "-1+cmd|'x'!A0"]
    texts = page.evaluate("(cells) => cells.map(cell)", cells)
    assert texts == [*cells[:-1], "'" + cells[-1]]


def contrasts(page):
    """The least contrast of text with what is behind it, of every element that has text of its own."""
    return page.evaluate(
        """() => {
          const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
              .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
              .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (element) => {
            for (let at = element; at; at = at.parentElement) {
              const colour = rgb(getComputedStyle(at).backgroundColor);
              if (colour.length === 3 || colour[3] > 0) return colour;
            }
            return [255, 255, 255];
          };
          const found = [];
          for (const element of document.querySelectorAll("body *:not(svg *, script)")) {
            if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
            if (!element.getClientRects().length) continue;
            const [a, b] = [light(rgb(getComputedStyle(element).color)), light(behind(element))];
            found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML]);
          }
          return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes_and_the_choice_is_remembered(open_page, scheme):
    other = {"light": "dark", "dark": "light"}[scheme]
    page = open_page(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => details.open = true)")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    assert contrasts(page)[0] >= 4.5
    page.get_by_role("button", name=f"Switch to {other} colours").click()
    assert page.evaluate(paper) != before
    assert contrasts(page)[0] >= 4.5
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == other
    page.emulate_media(media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"  # paper is light whatever the theme


def test_where_nothing_may_be_stored_the_theme_still_switches(open_page):
    page = open_page(color_scheme="light")
    refuses = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    page.add_init_script(refuses)
    page.reload()
    page.get_by_role("button", name="Switch to dark colours").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_on_paper_everything_is_unfolded_and_afterwards_as_it_was(open_page):
    page = open_page()
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(folded)
    assert before > 5
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == 0
    page.emulate_media(media="print")
    assert page.locator("#entropy_by_method td").first.is_visible()
    assert not page.locator(".downloads").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == before


def test_what_a_finger_touches_on_a_phone_is_large_enough(open_page):
    page = open_page(width=390, height=844, has_touch=True, is_mobile=True)
    page.evaluate("document.querySelectorAll('details').forEach((details) => details.open = true)")
    small = page.evaluate(
        """[...document.querySelectorAll("button, summary, nav a, .controls label")]
            .filter((one) => one.getClientRects().length && one.getBoundingClientRect().height < 31.5)
            .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert small == []
