// Package browser tests the status page in a real browser.
package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// limit ends a broken test. It is not a limit for slow tests.
const limit = 2 * time.Minute

// findBrowser returns the path of a browser.
func findBrowser(t testing.TB) string {
	t.Helper()
	names := []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	pgtest.Missing(t, "the status page was not looked at: none of %s is on the PATH", strings.Join(names, ", "))
	return ""
}

// A tab of a browser.
type tab struct {
	t   testing.TB
	ctx context.Context

	mu         sync.Mutex
	complaints []string // of the console, the policy, and scripts
}

// openTab starts a browser, which ends with the test.
func openTab(t testing.TB) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(findBrowser(t)), chromedp.UserDataDir(t.TempDir()))
	if os.Geteuid() == 0 { // the sandbox does not work for root
		options = append(options, chromedp.NoSandbox)
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until the browser has ended
		cancel()
	})
	b := &tab{t: t, ctx: ctx}
	// The browser lives as long as the context of the first call, so this context has no limit.
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	call(b, cdplog.Enable, cdp.Empty{})
	call(b, runtime.Enable, cdp.Empty{})
	call(b, accessibility.Enable, cdp.Empty{})
	b.as(looks[0])
	return b
}

func (b *tab) listen(event any) {
	var complaint string
	switch e := event.(type) {
	case *cdplog.EventEntryAdded:
		complaint = fmt.Sprintf("%s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL)
	case *runtime.EventConsoleAPICalled:
		for _, argument := range e.Args {
			complaint += fmt.Sprintf("console.%s %s %s", e.Type, argument.Value, argument.Description)
		}
	case *runtime.EventExceptionThrown:
		complaint = "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			complaint += " " + e.ExceptionDetails.Exception.Description
		}
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complaints = append(b.complaints, complaint)
}

// quiet fails the test if the browser has reported problems.
func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		b.t.Errorf("the browser says: %s", c)
	}
}

// run performs an action in a tab.
func run[T any](b *tab, what string, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	return v
}

// call sends a command of the protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	return run(b, string(command.Method), func(ctx context.Context, t *chromedp.Target) (R, error) {
		return cdp.Call(ctx, t, command, params)
	})
}

// open loads a page and waits until it shows the status.
func (b *tab) open(url string) {
	b.t.Helper()
	run(b, "open "+url, chromedp.Navigate(url))
	b.wait("the page shows something", `document.querySelector("#fresh").textContent !== ""`)
}

// wait waits until a JavaScript expression is true.
func (b *tab) wait(what, expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingMutation(), chromedp.WithPollingTimeout(0))); err != nil {
		b.t.Fatalf("wait until %s: %v\n%s", what, err, b.text("body"))
	}
}

// value returns the value of a JavaScript expression.
func value[T any](b *tab, expression string) T {
	b.t.Helper()
	return run(b, expression, chromedp.Evaluate[T](expression))
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	return value[string](b, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, selector))
}

// unfold opens all that is folded, as a reader does, and shows all items of lists.
func (b *tab) unfold() {
	b.t.Helper()
	value[any](b, `for (let e; e = document.querySelector("details:not([open]) > summary, [data-more]");) e.click()`)
}

// An accessible element, as a screen reader gets it.
type accessible struct{ role, name string }

// accessibles returns all elements with one of the roles.
func (b *tab) accessibles(roles ...string) []accessible {
	b.t.Helper()
	var found []accessible
	for _, n := range call(b, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		a := accessible{role: unquote(n.Role)}
		if n.Name != nil {
			a.name = unquote(n.Name)
		}
		if slices.Contains(roles, a.role) {
			found = append(found, a)
		}
	}
	return found
}

func unquote(v *accessibility.Value) string {
	var text string
	_ = json.Unmarshal(v.Value, &text) // other values are no roles and no names
	return text
}
