package browser

import (
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/getpup/pupsourcing-orchestrator/ops"
)

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

// No scene is wider than the screen.
func TestScenes(t *testing.T) {
	for name, play := range scenes {
		t.Run(name, func(t *testing.T) {
			b := openTab(t)
			s := newScene(t)
			play(s)
			b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
			for _, l := range looks {
				b.as(l)
				if wide := value[int64](b, `document.documentElement.scrollWidth`); wide > l.width {
					t.Errorf("%s is %d wide, on a screen of %d", l.name, wide, l.width)
				}
				if *screenshots != "" {
					picture := run(b, "take a picture", chromedp.FullScreenshot(100))
					if err := os.WriteFile(filepath.Join(*screenshots, name+"-"+l.name+".png"), picture, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			b.quiet()
		})
	}
}
