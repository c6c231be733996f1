package browser

import (
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/getpup/pupsourcing-orchestrator/ops"
)

var picture = flag.String("picture", "", "the file to put the picture of docs/status-page.md into")

var screenshots = flag.String("screenshots", "", "a folder to put pictures of the scenes into")

// A look is a screen and a color scheme.
type look struct {
	name          string
	width, height int64
	scheme        string
}

var looks = []look{
	{"light", 1280, 900, "light"},
	{"dark", 1280, 900, "dark"},
	{"phone", 375, 740, "light"},
	{"phone-dark", 375, 740, "dark"},
}

func (b *tab) as(l look) {
	b.t.Helper()
	run(b, "look as "+l.name, chromedp.EmulateViewport(l.width, l.height, func(d *emulation.SetDeviceMetricsOverrideParams, _ *emulation.SetTouchEmulationEnabledParams) {
		d.Mobile = l.width < 500
	}))
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}},
	})
}

// serve serves the page under a prefix, as a program would.
func serve(t testing.TB, h http.Handler) (url string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/ops/status", h)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL + "/ops/status"
}

// photograph takes a picture, if they are asked for.
func (b *tab) photograph(name string) {
	b.t.Helper()
	if *screenshots == "" {
		return
	}
	image := run(b, "take a picture", chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), image, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// No scene is wider than the screen, also with everything opened.
func TestScenes(t *testing.T) {
	for name, play := range scenes {
		t.Run(name, func(t *testing.T) {
			b := openTab(t)
			s := newScene(t)
			play(s)
			b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
			for _, folded := range []string{"", "-open"} {
				if folded != "" {
					b.unfold()
				}
				for _, l := range looks {
					b.as(l)
					if wide := value[int64](b, `document.documentElement.scrollWidth`); wide > l.width {
						t.Errorf("%s%s is %d wide, on a screen of %d", l.name, folded, wide, l.width)
					}
					b.photograph(name + "-" + l.name + folded)
				}
			}
			b.quiet()
		})
	}
}

// The picture of docs/status-page.md is of the page as it is, ten minutes after it was opened.
func TestPicture(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["picture"](s)
	b.as(look{"picture", 1120, 700, "light"})
	b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())) + "?replica_set=main-projections")
	value[any](b, `clearTimeout(timer); asking = null;
		for (const [i, name] of ["order_totals", "search_index", "user_count"].entries()) {
			const points = [];
			for (let k = 120; k >= 0; k--) points.push({time: Date.parse(known.replica_sets[0].at) - k * 5000,
				rate: 400 + 90 * Math.sin(k / 9 + 2 * i) + 25 * Math.sin(k * 1.7 + i) - (i === 1 && k < 250 / 5 ? 130 : 0), left: [0, 41212 - 400 * k / 12, 9400 + 5100 * k / 12][i]});
			samples.set("main-projections\n" + name, {points});
		}
		show(known)`)
	for _, part := range []string{"↑ 400/min", "↓ 5,100/min", "left", "75.0 %", "order-5520 · 3 events", "retrying: attempt 17"} {
		if text := b.text("body"); !strings.Contains(text, part) {
			t.Errorf("it lacks %q: %s", part, text)
		}
	}
	if *picture == "" {
		return
	}
	image := run(b, "take a picture", chromedp.FullScreenshot(100))
	if len(image) > 300_000 {
		t.Errorf("the picture has %d bytes", len(image))
	}
	if err := os.WriteFile(*picture, image, 0o644); err != nil {
		t.Fatal(err)
	}
}
