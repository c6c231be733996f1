package sim

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func pageOf(t *testing.T, h history, v *violation, title string) string {
	t.Helper()
	var out strings.Builder
	if err := timeline(&out, h, v, title); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// With TIMELINES=folder the pages are kept there.
func TestTimeline(t *testing.T) {
	broken, v := tellTwoOwners()
	pages := map[string]string{
		"ordinary":   pageOf(t, tellOrdinary(), nil, "seed 7: 3 workers, 6 faults"),
		"two_owners": pageOf(t, broken, &v, "seed 8347: 4 workers, 1 fault"),
		"every_kind": pageOf(t, tellEveryKind(), nil, "every kind"),
		"much":       pageOf(t, tellMuch(10_000), nil, "10,000 facts"),
		"too_much":   pageOf(t, tellMuch(100_000), nil, "100,000 facts"),
		"nothing":    pageOf(t, history{}, nil, "nothing"),
	}
	for name, page := range pages {
		for _, foreign := range []string{"http", "src=", "url(", "@import", "<link", "ZgotmplZ"} {
			if strings.Contains(page, foreign) {
				t.Errorf("%s: the page has %q in it", name, foreign)
			}
		}
		if len(page) > 2<<20 {
			t.Errorf("%s: the page has %d bytes", name, len(page))
		}
		if folder := os.Getenv("TIMELINES"); folder != "" {
			if err := os.WriteFile(filepath.Join(folder, name+".html"), []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The order of maps does not affect the page.
	var open tale
	for i := range 30 {
		open.tell(1, fact{kind: handlerBegins, worker: fmt.Sprint("w", i%3), projection: fmt.Sprint("p", i%5), call: i})
	}
	first := pageOf(t, open.history(), nil, "")
	for i := range 3 {
		if pageOf(t, open.history(), nil, "") != first || pageOf(t, broken, &v, "seed 8347: 4 workers, 1 fault") != pages["two_owners"] || pageOf(t, tellMuch(10_000), nil, "10,000 facts") != pages["much"] {
			t.Errorf("drawn again (%d), it is another page", i)
		}
	}
}

// Every fact has a mark with a title, even if it does not fit the others.
func TestTimelineShowsEverything(t *testing.T) {
	var titles strings.Builder
	for _, m := range regexp.MustCompile(`(?s) title="([^"]*)"`).FindAllStringSubmatch(pageOf(t, tellEveryKind(), nil, ""), -1) {
		titles.WriteString(html.UnescapeString(m[1]) + "\n")
	}
	for k := workerStarts; k <= ended; k++ {
		for _, text := range []string{fmt.Sprintf("kind-%d.", k), fmt.Sprintf("kind-%d-without-worker.", k)} {
			if text == fmt.Sprintf("kind-%d.", runStarts) {
				text = "w1 runs 0/1 of generation 1"
			}
			if !strings.Contains(titles.String(), text) {
				t.Errorf("no mark says %s", text)
			}
		}
	}
}

func TestTimelineOfViolation(t *testing.T) {
	h, v := tellTwoOwners()
	page := html.UnescapeString(pageOf(t, h, &v, "seed 8347"))
	for _, want := range []string{
		"SAFETY one-owner, step ", ", +41.2s", v.sentence(),
		`class="badge final"`, `class="line broken"`, `class="call broken"`, `class="row worker bad"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for i, f := range v.facts {
		if badge := fmt.Sprintf(`title="%s"><b>%d</b>`, hint(f), i+1); !strings.Contains(page, badge) {
			t.Errorf("the page lacks a badge %s", badge)
		}
	}
	if got := strings.Count(page, `class="badge"`) + strings.Count(page, `class="badge final"`); got != len(v.facts) {
		t.Errorf("%d badges for %d facts", got, len(v.facts))
	}
	if strings.Contains(pageOf(t, h, nil, ""), `class="badge`) {
		t.Error("a page without violation has badges")
	}
	// A fact that the history does not have, of an unknown worker.
	v.facts = append(v.facts, fact{step: 100000, at: time.Hour, kind: runStopped, worker: "w99"})
	if !strings.Contains(pageOf(t, h, &v, ""), "w99") {
		t.Error("the worker of a violation's fact has no row")
	}
}

// Near the violation's facts every mark is drawn, however many there are.
func TestTimelineKeepsWhatIsNear(t *testing.T) {
	h := tellMuch(60_000)
	var v violation
	for i := 40_000; len(v.facts) == 0; i++ {
		if f := h.facts[i]; f.kind == committed {
			v = violation{promise: onlyGrow, what: "made up", facts: []fact{f}}
		}
	}
	page := html.UnescapeString(pageOf(t, h, &v, ""))
	if !strings.Contains(page, " of these until ") {
		t.Error("nothing was drawn together; the test needs a larger history")
	}
	near := 0
	for _, f := range h.facts[v.facts[0].step-50 : v.facts[0].step+50] {
		if f.kind == committed || f.kind == handlerBegins {
			near++
			if !strings.Contains(page, `title="`+hint(f)) {
				t.Errorf("drawn together with others: %s", hint(f))
			}
		}
	}
	if near == 0 {
		t.Error("there is nothing near the violation")
	}
}

// Each partition of a share is a bar, and all of them end together.
func TestTimelineOfShares(t *testing.T) {
	var tell tale
	tell.joins(0, "w1")
	tell.generation(0.1, 0.1, 1, "first worker", "w1", "w1")
	tell.stops(5, 1, "w1")
	page := html.UnescapeString(pageOf(t, tell.history(), nil, ""))
	for _, bar := range []string{
		"w1 runs 0/2 of generation 1\nfrom +0.2s until +5.3s (stopped)\ndrains from +5s",
		"w1 runs 1/2 of generation 1\nfrom +0.25s until +5.3s (stopped)\ndrains from +5s",
	} {
		if !strings.Contains(page, bar) {
			t.Errorf("no bar says %q", bar)
		}
	}
}

// Names and texts are escaped.
func TestTimelineEscapes(t *testing.T) {
	const evil = `"><script>alert(1)</script>&'{{.}}`
	var tell tale
	tell.tell(0, fact{kind: workerStarts, worker: evil, text: evil})
	tell.tell(1, fact{kind: runStarts, worker: evil, generation: 1, total: 1})
	tell.tell(2, fact{kind: handlerBegins, worker: evil, projection: evil, generation: 1, total: 1, call: 1})
	tell.tell(3, fact{kind: handlerEnds, worker: evil, projection: evil, call: 1, text: evil})
	tell.tell(4, fact{kind: faultOther, text: evil})
	tell.tell(5, fact{kind: groupOpened, worker: evil, generation: 1, text: evil})
	h := tell.history()
	page := pageOf(t, h, &violation{promise: promise(evil), what: evil, facts: h.facts}, evil)
	if strings.Contains(page, "<script>alert") || strings.Contains(page, `title=""`) {
		t.Error("a text became markup")
	}
	if n := strings.Count(page, "<script"); n != 1 {
		t.Errorf("%d scripts", n)
	}
	if !strings.Contains(html.UnescapeString(page), evil) {
		t.Error("the text itself is lost")
	}
}
