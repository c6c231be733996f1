package ops_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// An exchange is a request to the status page and the response.
type exchange struct {
	*http.Response
	body string
}

func ask(h http.Handler, method, target, body string, header ...string) exchange {
	r := httptest.NewRequest(method, "http://ops.example"+target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return exchange{w.Result(), w.Body.String()}
}

// statusOf is the JSON answer.
type statusOf struct {
	At          string
	Error       string
	AwaySince   string `json:"away_since"`
	Actions     bool
	ReplicaSets []struct {
		ops.ReplicaSetStatus
		History []ops.GenerationRecord
		Parked  []struct {
			Projection, Error, Request string
			Position                   int64
		}
	} `json:"replica_sets"`
}

func askStatus(t *testing.T, h http.Handler, target string, code int) (s statusOf) {
	t.Helper()
	got := ask(h, "GET", target, "", "Accept", "application/json")
	if got.StatusCode != code || got.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("GET %s: %s, %s; want %d and JSON: %s", target, got.Status, got.Header.Get("Content-Type"), code, got.body)
	}
	if err := json.Unmarshal([]byte(got.body), &s); err != nil {
		t.Fatalf("GET %s: %v in %s", target, err, got.body)
	}
	return s
}

// aSet inserts the rows of a replica set without workers.
func (w *world) aSet(set string, projections ...string) {
	w.T.Helper()
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation, total, reason, opened_at, activated_at) VALUES ($1, 3, 1, '1 joined', now(), now())`, set)
	w.Exec(`INSERT INTO orchestrator_history VALUES ($1, 3, '1 joined', 1, '{"w": [0]}', now(), now())`, set)
	for _, p := range projections {
		w.Exec(`INSERT INTO orchestrator_projections VALUES ($1, $2)`, p, set)
		w.Exec(`INSERT INTO orchestrator_checkpoints VALUES ($1, 0, $2, 3, 1, 70, NULL, now())`, p, set)
	}
}

func TestStatusPageNegotiation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := ops.StatusHandler(w.DB)
	for _, c := range []struct{ accept, want string }{
		{"", "text/html"},
		{"*/*", "text/html"},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"},
		{"application/json", "application/json"},
		{"application/json, text/plain, */*", "application/json"},
		{"text/html;q=0.5, application/json", "application/json"},
		{"application/json;q=0.5, text/html", "text/html"},
		{"application/json, text/html", "text/html"},
		{"application/json;q=0", "text/html"},
		{"application/json;q=x", "text/html"},
		{";;;", "text/html"},
	} {
		got := ask(h, "GET", "/x", "", "Accept", c.accept)
		if kind := got.Header.Get("Content-Type"); got.StatusCode != 200 || !strings.HasPrefix(kind, c.want) {
			t.Errorf("Accept %q: %s, %s; want %s", c.accept, got.Status, kind, c.want)
		}
		if got.Header.Get("Vary") != "Accept" || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("Accept %q: a cache may mix the two up: %v", c.accept, got.Header)
		}
	}
}

func TestStatusPageJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.aSet("billing", "invoices")
	w.aSet("main", "users")
	w.Exec(`INSERT INTO orchestrator_parked VALUES ('users', 68, 1, 'a', 'no such user', 3, now(), 'retry')`)
	h := ops.StatusHandler(w.DB)

	all := askStatus(t, h, "/", 200)
	if len(all.ReplicaSets) != 2 || all.ReplicaSets[0].ReplicaSet != "billing" || all.At == "" || all.Actions {
		t.Errorf("got %+v", all)
	}
	one := askStatus(t, h, "/status?replica_set=main", 200)
	if len(one.ReplicaSets) != 1 {
		t.Fatalf("got %+v", one)
	}
	set := one.ReplicaSets[0]
	if set.ReplicaSet != "main" || set.Generation != 3 || len(set.Partitions) != 1 || set.Partitions[0].Position != 70 ||
		len(set.History) != 1 || len(set.Parked) != 1 || set.Parked[0].Error != "no such user" || set.Parked[0].Request != "retry" {
		t.Errorf("got %+v", set)
	}
	if askStatus(t, h, "/status?replica_set=nobody", 404).Error == "" {
		t.Error("a replica set that is not there has no error")
	}
	all = askStatus(t, h, "/", 200)
	if len(all.ReplicaSets) != 2 || all.ReplicaSets[0].ReplicaSet != "billing" || all.ReplicaSets[1].ReplicaSet != "main" {
		t.Errorf("asking for one has left the others with %+v", all.ReplicaSets)
	}
}

func TestStatusPageHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := ask(ops.StatusHandler(w.DB), "GET", "/", "", "Accept", "text/html")
	policy := got.Header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("the policy %q lacks %s", policy, part)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("the policy %q allows too much", policy)
	}
	for name, want := range map[string]string{"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	page := strings.ReplaceAll(got.body, "http://www.w3.org/2000/svg", "")                                                 // a name, which is not fetched
	page = strings.ReplaceAll(page, "https://github.com/getpup/pupsourcing-orchestrator/blob/main/docs/operations.md", "") // a link
	for _, outside := range []string{"http://", "https://", " src=", "@import", " style="} {
		if strings.Contains(page, outside) {
			t.Errorf("the page contains %q", outside)
		}
	}
}

// The page links each kind of cause, and the states, to the headings of docs/operations.md.
func TestStatusPageLinks(t *testing.T) {
	t.Parallel()
	page := ask(ops.StatusHandler(nil), "GET", "/", "", "Accept", "text/html").body
	_, list, _ := strings.Cut(page, "const kinds = new Set([")
	list, _, _ = strings.Cut(list, "]")
	var linked []string
	if err := json.Unmarshal([]byte("["+list+"]"), &linked); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("waits.go")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, m := range regexp.MustCompile(`(?m)^\tWait\w+ +WaitKind = "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		kinds = append(kinds, m[1])
	}
	if !cmp.Equal(linked, kinds) || len(kinds) == 0 {
		t.Errorf("the page links %q, and the kinds are %q", linked, kinds)
	}
	guide, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, headings, _ := strings.Cut(page, "const headingOf = new Map([")
	headings, _, _ = strings.Cut(headings, ");")
	for _, m := range regexp.MustCompile(`, "(\w+)"\]`).FindAllStringSubmatch(headings, -1) {
		linked = append(linked, m[1])
	}
	if len(linked) < len(kinds)+10 {
		t.Errorf("the headings of states are missing: %q", linked)
	}
	for _, anchor := range append(linked, "States") {
		if !strings.Contains(string(guide), "\n### "+anchor+"\n") {
			t.Errorf("docs/operations.md has no heading %q", anchor)
		}
	}
	if _, err := os.Stat("../docs/getting-started.md"); err != nil {
		t.Error(err)
	}
}

// Names are data in JSON. (internal/integration/browser checks them on the page.)
func TestStatusPageEscapes(t *testing.T) {
	t.Parallel()
	const evil = `<script>alert(1)</script>`
	w := newWorld(t)
	w.aSet("main", evil)
	h := ops.StatusHandler(w.DB)
	if p := askStatus(t, h, "/", 200).ReplicaSets[0].Partitions[0].Projection; p != evil {
		t.Errorf("the projection is called %q, want %q", p, evil)
	}
	for _, accept := range []string{"text/html", "application/json"} {
		if got := ask(h, "GET", "/?replica_set="+evil, "", "Accept", accept); strings.Contains(got.body, evil) {
			t.Errorf("%s has %s", accept, evil)
		}
	}
	if got := ask(h, "GET", "/", "", "Accept", "application/json"); strings.Contains(got.body, evil) {
		t.Errorf("JSON has %s", evil)
	}
}

func TestStatusPageMethods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		h     http.Handler
		allow string
	}{
		{ops.StatusHandler(w.DB), "GET, HEAD"},
		{ops.StatusHandler(w.DB, ops.AllowActions()), "GET, HEAD, POST"},
	} {
		for _, method := range []string{"PUT", "DELETE", "OPTIONS", "POST"} {
			if method == "POST" && strings.Contains(c.allow, method) {
				continue
			}
			got := ask(c.h, method, "/", `{"action":"pause","replica_set":"main","all":true}`, "Content-Type", "application/json")
			if got.StatusCode != http.StatusMethodNotAllowed || got.Header.Get("Allow") != c.allow {
				t.Errorf("%s: %s, Allow %q; want 405, %q", method, got.Status, got.Header.Get("Allow"), c.allow)
			}
		}
		if got := ask(c.h, "HEAD", "/", "", "Accept", "application/json"); got.StatusCode != 200 {
			t.Errorf("HEAD: %s", got.Status)
		}
	}
}

func TestStatusPageActions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.aSet("main", "users", "orders")
	w.Exec(`INSERT INTO orchestrator_parked VALUES ('users', 68, 1, 'a', 'no such user', 3, now()), ('users', 69, 1, 'a', '', 0, now()),
		('users', 72, 1, 'b', 'no such user', 3, now()), ('users', 73, 1, 'b', '', 0, now()), ('users', 74, 1, 'c', 'no such user', 3, now())`)
	h := ops.StatusHandler(w.DB, ops.AllowActions())
	post := func(body string) exchange {
		return ask(h, "POST", "/", body, "Content-Type", "application/json", "Sec-Fetch-Site", "same-origin")
	}
	if !askStatus(t, h, "/", 200).Actions {
		t.Error("the page is not told that it may offer actions")
	}
	for _, c := range []struct {
		body string
		code int
		so   string // SQL that must be true then
	}{
		{`{"action":"pause","replica_set":"main","projection":"users"}`, 200, `SELECT (paused = '["users"]')::int FROM orchestrator_replica_sets`},
		{`{"action":"resume","replica_set":"main","projection":"users"}`, 200, `SELECT (paused = '[]')::int FROM orchestrator_replica_sets`},
		{`{"action":"pause","replica_set":"main","all":true}`, 200, `SELECT (paused = '[""]')::int FROM orchestrator_replica_sets`},
		{`{"action":"resume","replica_set":"main","all":true}`, 200, `SELECT (paused = '[]')::int FROM orchestrator_replica_sets`},
		{`{"action":"retry","projection":"users","position":68}`, 200, `SELECT count(*) FROM orchestrator_parked WHERE position = 68 AND request = 'retry'`},
		{`{"action":"discard","projection":"users","position":69}`, 200, `SELECT count(*) FROM orchestrator_parked WHERE position = 69 AND request = 'discard'`},
		{`{"action":"retry","projection":"users","aggregate_id":"b"}`, 200, `SELECT (count(*) = 2 AND min(aggregate_id) = 'b')::int FROM orchestrator_parked WHERE request = 'retry' AND position > 69`},
		{`{"action":"discard","projection":"users","aggregate_id":"c"}`, 200, `SELECT count(*) FROM orchestrator_parked WHERE request = 'discard' AND position = 74`},
		{`{"action":"retry","projection":"users","all":true}`, 200, `SELECT (count(*) = 5)::int FROM orchestrator_parked WHERE request = 'retry'`},
		{`{"action":"discard","projection":"users","aggregate_id":"c"}`, 200, `SELECT count(*) FROM orchestrator_parked WHERE request = 'discard'`},
		{`{"action":"rewind","replica_set":"main","projection":"users","position":7}`, 200, `SELECT (rewinds = '{"users": 7}')::int FROM orchestrator_replica_sets`},
		{`{"action":"park","replica_set":"main","projection":"users","position":71,"by":"ann"}`, 200, `SELECT count(*) FROM orchestrator_park_orders WHERE position = 71 AND ordered_by = 'ann' AND ended_at IS NULL`},
		// Orders that can't be carried out.
		{`{"action":"park","replica_set":"main","projection":"users","position":68,"by":"ann"}`, 409, ``},
		{`{"action":"park","replica_set":"main","projection":"nothing","position":12,"by":"ann"}`, 409, ``},
		{`{"action":"park","replica_set":"main","projection":"users","position":12,"by":"a\u0000"}`, 409, ``},
		{`{"action":"rewind","replica_set":"main","projection":"users","position":"9007199254740993"}`, 200, `SELECT (rewinds = '{"users": 9007199254740993}')::int FROM orchestrator_replica_sets`},
		{`{"action":"rewind","replica_set":"main","projection":"users","position":7}`, 200, `SELECT (rewinds = '{"users": 7}')::int FROM orchestrator_replica_sets`},
		{`{"action":"retry","projection":"users","position":1}`, 409, ``},
		{`{"action":"discard","projection":"users","aggregate_id":"nothing"}`, 409, ``},
		{`{"action":"discard","projection":"nothing","position":68}`, 409, ``},
		{`{"action":"resume","replica_set":"main","projection":"nothing"}`, 409, ``},
		{`{"action":"rewind","replica_set":"main","projection":"users","position":-1}`, 409, ``},
		{`{"action":"drain","replica_set":"main","worker":"nobody"}`, 409, ``},
		{`{"action":"undrain","replica_set":"main","worker":"nobody"}`, 409, ``},
		// Bodies that are no orders. Above all, a missing field must not mean "all".
		{`{"action":"pause","replica_set":"main"}`, 400, `SELECT (paused = '[]')::int FROM orchestrator_replica_sets`},
		{`{"action":"rewind","replica_set":"main","projection":"users"}`, 400, `SELECT (rewinds = '{"users": 7}')::int FROM orchestrator_replica_sets`},
		{`{"action":"discard","projection":"users"}`, 400, `SELECT (count(*) = 1)::int FROM orchestrator_parked WHERE request = 'discard'`},
		{`{"action":"discard","projection":"users","aggregate_id":""}`, 400, ``},
		{`{"action":"discard","projection":"users","aggregate_id":"a","position":68}`, 400, ``},
		{`{"action":"discard","projection":"users","aggregate_id":"a","all":true}`, 400, ``},
		{`{"action":"discard","all":true}`, 400, `SELECT (count(*) = 1)::int FROM orchestrator_parked WHERE request = 'discard'`},
		{`{"action":"pause","replica_set":"main","projection":"users","aggregate_id":"a"}`, 400, ``},
		{`{"action":"park","replica_set":"main","projection":"users","by":"ann"}`, 400, ``},
		{`{"action":"park","replica_set":"main","projection":"users","position":12}`, 400, ``},
		{`{"action":"park","projection":"users","position":12,"by":"ann"}`, 400, ``},
		{`{"action":"drain","replica_set":"main"}`, 400, ``},
		{`{"action":"retry","projection":"users","position":1e3}`, 400, ``},
		{`{"action":"retry","projection":"users","position":"x"}`, 400, ``},
		{`{"action":"retry","projection":"users","position":9223372036854775808}`, 400, ``},
		{`{"action":"pause","all":true}`, 400, ``},
		{`{"action":"pause","replica_set":"main","projection":""}`, 400, ``},
		{`{"action":"rewind","replica_set":"main","all":true,"position":1}`, 400, ``},
		{`{"action":"explode","replica_set":"main","projection":""}`, 400, ``},
		{`{"action":"pause","replica_set":"main","projection":"users","all":true}`, 400, ``},
		{`pause`, 400, ``},
		{`{"action":"` + strings.Repeat("x", 1<<20) + `"}`, 400, ``},
	} {
		name := c.body[:min(len(c.body), 100)]
		got := post(c.body)
		var answer struct {
			Generation *int64
			Error      string
		}
		if err := json.Unmarshal([]byte(got.body), &answer); err != nil || got.StatusCode != c.code || (answer.Error == "") != (c.code == 200) {
			t.Errorf("%s: %s, want %d: %s", name, got.Status, c.code, got.body)
		}
		if c.code == 200 && (answer.Generation == nil || strings.Contains(c.body, `"pause"`) && *answer.Generation < 3) {
			t.Errorf("%s does not tell the generation: %s", name, got.body)
		}
		if c.so != "" && w.Number(c.so) != 1 {
			t.Errorf("%s: not so afterwards: %s", name, c.so)
		}
	}
	if got := post(`{"action":"explode"}`); !strings.Contains(got.body, `unknown action \"explode\"`) {
		t.Errorf("what there is not is answered with %s", got.body)
	}
	// A projection that has never run may come later, or its name is mistyped: the answer says
	// so.
	for _, action := range []string{"pause", "resume"} {
		got := post(`{"action":"` + action + `","replica_set":"main","projection":"nothing"}`)
		if not := strings.Contains(got.body, `"not_run":true`); got.StatusCode != 200 || not != (action == "pause") {
			t.Errorf("%s of a projection that has not run yet: %s", action, got.body)
		}
	}
	// The next answer is not from before the order.
	post(`{"action":"pause","replica_set":"main","projection":"orders"}`)
	if set := askStatus(t, h, "/", 200).ReplicaSets[0]; !cmp.Equal(set.Paused, []string{"orders"}) {
		t.Errorf("paused after the order: %v", set.Paused)
	}
}

// Of each projection some parked events are listed: those of one don't hide those of another.
func TestStatusPageParkedOfAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.aSet("main", "orders", "users")
	w.Exec(`INSERT INTO orchestrator_parked SELECT 'orders', n, 0, 'a' || n, 'broken', 1, now() FROM generate_series(1, 300) n`)
	w.Exec(`INSERT INTO orchestrator_parked SELECT 'users', n, 0, 'a' || n, 'broken', 1, now() FROM generate_series(1, 3) n`)
	parked := askStatus(t, ops.StatusHandler(w.DB), "/", 200).ReplicaSets[0].Parked
	var got []string
	for _, p := range parked {
		got = append(got, fmt.Sprint(p.Projection, " ", p.Position))
	}
	if len(got) != 100 || got[0] != "orders 1" || got[96] != "orders 97" || got[97] != "users 1" || got[99] != "users 3" {
		t.Errorf("got %q", got)
	}
}

// The program decides whether events are shown, and what of them. Only parked ones are.
func TestStatusPageDescribesEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.aSet("main", "users")
	w.Exec(`INSERT INTO orchestrator_parked VALUES ('users', 68, 1, 'a', 'no such user', 3, now()), ('users', 9007199254740993, 1, 'b', 'no such user', 3, now()), ('users', 70, 1, 'c', '', 0, now())`)
	var asked []int64
	h := ops.StatusHandler(w.DB, ops.DescribeEvents(func(_ context.Context, position int64) (ops.EventDescription, error) {
		asked = append(asked, position)
		if position == 70 {
			return ops.EventDescription{}, errors.New("it was deleted (postgres://u:secret@h/d)")
		}
		return ops.EventDescription{Type: "UserAdded", Payload: strings.Repeat("ä", 40<<10)}, nil
	}))
	for _, c := range []struct {
		h     http.Handler
		query string
		code  int
	}{
		{h, "68", 200}, {h, "9007199254740993", 200}, {h, "69", 404}, {h, "x", 400}, {h, "70", 502}, {ops.StatusHandler(w.DB), "68", 404},
	} {
		got := ask(c.h, "GET", "/?event="+c.query, "", "Accept", "application/json")
		var event struct{ Type, Payload, Error string }
		if err := json.Unmarshal([]byte(got.body), &event); err != nil || got.StatusCode != c.code || (event.Error == "") != (c.code == 200) || strings.Contains(got.body, "secret") {
			t.Errorf("event %s: %s, want %d: %.100s", c.query, got.Status, c.code, got.body)
		}
		if c.code == 200 && (event.Type != "UserAdded" || len(event.Payload) > 64<<10+10 || !strings.HasSuffix(event.Payload, "ä …")) {
			t.Errorf("event %s is %s, with %d bytes", c.query, event.Type, len(event.Payload))
		}
	}
	if want := []int64{68, 9007199254740993, 70}; !slices.Equal(asked, want) {
		t.Errorf("the program was asked for %v, want %v", asked, want)
	}
	for _, c := range []struct {
		h    http.Handler
		want string
	}{{h, `"events":true`}, {ops.StatusHandler(w.DB), `"events":false`}} {
		if got := ask(c.h, "GET", "/", "", "Accept", "application/json"); !strings.Contains(got.body, c.want) {
			t.Errorf("the page is not told %s", c.want)
		}
	}
}

// A page of another site can't give orders.
func TestStatusPageCrossSite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.aSet("main", "users")
	const order = `{"action":"pause","replica_set":"main","all":true}`
	plain := ops.StatusHandler(w.DB, ops.AllowActions())
	proxied := ops.StatusHandler(w.DB, ops.AllowActions("https://ops.public"))
	for _, c := range []struct {
		why    string
		h      http.Handler
		header []string
		code   int
	}{
		{"another site", plain, []string{"Content-Type", "application/json", "Sec-Fetch-Site", "cross-site"}, 403},
		{"another host of the site", plain, []string{"Content-Type", "application/json", "Sec-Fetch-Site", "same-site"}, 403},
		{"another origin, in an old browser", plain, []string{"Content-Type", "application/json", "Origin", "https://evil.example"}, 403},
		{"no origin at all (a sandboxed frame)", plain, []string{"Content-Type", "application/json", "Origin", "null"}, 403},
		{"behind a proxy that is not named", plain, []string{"Content-Type", "application/json", "Origin", "https://ops.public"}, 403},
		{"behind a proxy, another origin", proxied, []string{"Content-Type", "application/json", "Origin", "https://evil.example"}, 403},
		{"a form", plain, []string{"Content-Type", "text/plain"}, 415},
		{"another form", plain, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		{"a beacon", plain, nil, 415},
		{"the page, in an old browser", plain, []string{"Content-Type", "application/json", "Origin", "http://ops.example"}, 200},
		{"the page", plain, []string{"Content-Type", "application/json; charset=utf-8", "Sec-Fetch-Site", "same-origin"}, 200},
		{"behind a proxy", proxied, []string{"Content-Type", "application/json", "Origin", "https://ops.public"}, 200},
		{"a program", plain, []string{"Content-Type", "application/json"}, 200},
	} {
		w.Exec(`UPDATE orchestrator_replica_sets SET paused = '[]'`)
		got := ask(c.h, "POST", "/", order, c.header...)
		paused := w.Number(`SELECT (paused <> '[]')::int FROM orchestrator_replica_sets`) == 1
		if got.StatusCode != c.code || paused != (c.code == 200) {
			t.Errorf("%s: %s, paused: %v; want %d", c.why, got.Status, paused, c.code)
		}
	}
	wrong := ask(ops.StatusHandler(w.DB, ops.AllowActions("ops.public")), "GET", "/", "")
	if wrong.StatusCode != 500 || !strings.Contains(wrong.body, "ops.public") {
		t.Errorf("with an origin that is none it answers %d, %s", wrong.StatusCode, wrong.body)
	}
}

// The latest known state is shown while the database is unreachable.
func TestStatusPageDatabaseAway(t *testing.T) {
	w := newWorld(t)
	w.aSet("main", "users")
	connector, err := pq.NewConnector(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	gate := &testworld.Outage{Connector: connector}
	db := sql.OpenDB(gate)
	defer db.Close()
	h := ops.StatusHandler(db, ops.AllowActions())
	before := askStatus(t, h, "/", 200)
	if before.AwaySince != "" {
		t.Fatalf("got %+v", before)
	}

	gate.Begin(w.World)
	pgtest.Eventually(t, "the page says that the database is away", func() bool {
		return ask(h, "GET", "/", "", "Accept", "application/json").StatusCode == 503
	})
	away := askStatus(t, h, "/", 503)
	if away.Error == "" || away.AwaySince == "" || away.At != before.At || len(away.ReplicaSets) != 1 {
		t.Errorf("got %+v", away)
	}
	if got := ask(h, "GET", "/", "", "Accept", "text/html"); got.StatusCode != 200 {
		t.Errorf("the page itself: %s", got.Status)
	}
	if got := ask(h, "POST", "/", `{"action":"pause","replica_set":"main","all":true}`, "Content-Type", "application/json"); got.StatusCode != 503 {
		t.Errorf("an order: %s, want 503", got.Status)
	}

	never, err := sql.Open("postgres", "postgres://127.0.0.1:1/none?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer never.Close()
	if got := askStatus(t, ops.StatusHandler(never), "/", 503); got.Error == "" || got.ReplicaSets == nil {
		t.Errorf("it was never there: %+v", got)
	}
}

// Without tables, waiting does not help, and the answer says what does.
func TestStatusPageWithoutSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`DROP TABLE orchestrator_schema CASCADE`)
	if got := askStatus(t, ops.StatusHandler(w.DB), "/", 500); !strings.Contains(got.Error, "RunMigrations") {
		t.Errorf("got %q", got.Error)
	}
}

// The handler works under any address, with or without a slash at the end.
func TestStatusPageMounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mux := http.NewServeMux()
	h := ops.StatusHandler(w.DB)
	mux.Handle("/a", h)
	mux.Handle("/b/", h)
	mux.Handle("/c/", http.StripPrefix("/c", h))
	var codes []string
	for _, target := range []string{"/a", "/b/", "/b", "/c/", "/a?replica_set="} {
		codes = append(codes, fmt.Sprint(target, " ", ask(mux, "GET", target, "", "Accept", "application/json").StatusCode))
	}
	want := []string{"/a 200", "/b/ 200", "/b 307", "/c/ 200", "/a?replica_set= 404"}
	if !slices.Equal(codes, want) {
		t.Errorf("got %q, want %q", codes, want)
	}
}
