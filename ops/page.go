package ops

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// StatusHandler returns a handler that serves a live status page of all replica sets of a
// database: what is stalled and why, projections with their lag and throughput, parked events,
// workers, generations. The page is one file and loads nothing from elsewhere. Mount it anywhere:
//
//	http.Handle("/status", ops.StatusHandler(db))
//
// The same address answers with JSON if the request prefers application/json to text/html;
// docs/status-page.md lists the fields. ?replica_set=NAME selects one set. While the
// database can't be reached, the JSON has the HTTP status 503 and the latest known state.
//
// The handler reads the database at most once a second, on one connection, for all clients
// together. It reads less often if a read is slow, and not at all without requests. It does not
// connect to workers, so any program that reaches the database can serve it.
//
// The page is read-only unless AllowActions is given, and shows no event unless DescribeEvents
// is. It shows names, positions, and the errors
// of handlers and of the database: the program must restrict access to it. The
// http.Server needs timeouts, like any other.
func StatusHandler(db *sql.DB, options ...StatusOption) http.Handler {
	h := &statusHandler{tables: store.Tables{DB: db}}
	for _, option := range options {
		option(h)
	}
	h.known = newStatusCache(h.tables)
	h.known.actions, h.known.events = h.protection != nil, h.describe != nil
	return h
}

// StatusOption is an option of StatusHandler.
type StatusOption func(*statusHandler)

// AllowActions adds orders to the page: Pause, Resume, Rewind, DrainWorker, UndrainWorker, Park,
// RetryParked and DiscardParked. They are POST requests with a JSON body. Requests that a
// browser sends for a page of another site are refused (http.CrossOriginProtection). There is no
// other check: everyone who can reach the handler can give orders.
//
// origins are the origins under which browsers know the page, such as
// "https://ops.example.com". They are needed if a proxy changes the Host header. If one is
// malformed, the handler answers every request with the status 500 and an error that names it.
func AllowActions(origins ...string) StatusOption {
	protection := http.NewCrossOriginProtection()
	var failed error
	for _, origin := range origins {
		if err := protection.AddTrustedOrigin(origin); err != nil {
			failed = fmt.Errorf("ops.AllowActions: %w", err)
		}
	}
	return func(h *statusHandler) { h.protection, h.misused = protection, failed }
}

// An EventDescription is what the status page shows of a parked event: see DescribeEvents.
type EventDescription struct {
	Type    string `json:"type"`    // such as "OrderPlaced"
	Payload string `json:"payload"` // text: at most 64 KiB are shown
}

// DescribeEvents lets viewers of the page see the type and the payload of parked events, one at
// a time, on request. Without this option the page shows neither: payloads are the data of
// people, and the library does not know what may be shown. describe is called with the position
// of an event that is parked in at least one projection at this moment, and with the context of
// the request, which ends after 5 s at the latest. It returns what may be shown, for example
// without names. The text of its error is shown.
func DescribeEvents(describe func(ctx context.Context, position int64) (EventDescription, error)) StatusOption {
	return func(h *statusHandler) { h.describe = describe }
}

// TablesInSchema names the PostgreSQL schema of the library's tables, as
// orchestrator.Config.Schema does. Default: the schema that the search path leads to.
func TablesInSchema(name string) StatusOption {
	return func(h *statusHandler) { h.tables.Schema = name }
}

type statusHandler struct {
	tables     store.Tables
	misused    error // an option is invalid
	known      *statusCache
	protection *http.CrossOriginProtection // nil: actions are not allowed
	describe   func(context.Context, int64) (EventDescription, error)
}

func (h *statusHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Vary", "Accept")
	header.Set("Content-Security-Policy", statusPolicy())
	header.Set("X-Frame-Options", "DENY")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	switch {
	case h.misused != nil:
		answerError(w, http.StatusInternalServerError, h.misused.Error())
	case r.Method == http.MethodPost && h.protection != nil:
		h.order(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		allow := "GET, HEAD"
		if h.protection != nil {
			allow += ", POST"
		}
		header.Set("Allow", allow)
		answerError(w, http.StatusMethodNotAllowed, "method "+r.Method+" is not allowed here")
	case !prefersJSON(r.Header.Values("Accept")):
		header.Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(statusHTML) // an error means that the client has gone
	case r.URL.Query().Has("event"):
		h.event(w, r)
	default:
		h.status(w, r)
	}
}

func (h *statusHandler) status(w http.ResponseWriter, r *http.Request) {
	known, err := h.known.get(r.Context())
	if err != nil {
		answerError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	query := r.URL.Query()
	name := orchestrator.ReplicaSetName(query.Get("replica_set"))
	body, ok := known.body(name, query.Has("replica_set"))
	if !ok {
		answerError(w, http.StatusNotFound, fmt.Sprintf("no worker of replica set %q has ever run", name))
		return
	}
	write(w, known.code, body)
}

const payloadMax = 64 << 10 // bytes

// event answers with the description of a parked event.
func (h *statusHandler) event(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), statusPatience)
	defer cancel()
	text := r.URL.Query().Get("event")
	position, err := strconv.ParseInt(text, 10, 64)
	switch {
	case h.describe == nil:
		answerError(w, http.StatusNotFound, "this program does not show events: see ops.DescribeEvents")
		return
	case err != nil:
		answerError(w, http.StatusBadRequest, fmt.Sprintf("the position %q is not a whole number", text))
		return
	}
	parked, err := isParked(ctx, h.tables, position)
	if err != nil {
		answerError(w, codeOf(err), redact.Connection(err).Error())
		return
	}
	if !parked {
		answerError(w, http.StatusNotFound, fmt.Sprintf("event %d is not parked in any projection", position))
		return
	}
	event, err := h.describe(ctx, position)
	if err != nil {
		answerError(w, http.StatusBadGateway, redact.Error(err).Error())
		return
	}
	if len(event.Payload) > payloadMax {
		event.Payload = strings.ToValidUTF8(event.Payload[:payloadMax], "") + " …"
	}
	answer(w, http.StatusOK, event)
}

func answer(w http.ResponseWriter, code int, body any) {
	text, _ := json.Marshal(body) // every answer can be encoded
	write(w, code, append(text, '\n'))
}

// write sends an answer in JSON. The deadline ends the answer to a client that reads too slowly.
func write(w http.ResponseWriter, code int, body []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(statusWritePatience)) // where that is supported
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) // an error means that the client has gone
}

const statusWritePatience = 30 * time.Second

func answerError(w http.ResponseWriter, code int, text string) {
	answer(w, code, map[string]string{"error": text})
}

// prefersJSON reports whether the Accept headers name JSON and prefer it to HTML.
func prefersJSON(accept []string) bool {
	var json, html float64
	for entry := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, parameters, err := mime.ParseMediaType(entry)
		if err != nil {
			continue
		}
		quality := 1.0
		if q, ok := parameters["q"]; ok {
			quality, _ = strconv.ParseFloat(q, 64) // 0 where it is malformed
		}
		switch kind {
		case "application/json":
			json = max(json, quality)
		case "text/html":
			html = max(html, quality)
		}
	}
	return json > html
}

// The page is the same for all requests: what differs comes as JSON.
//
//go:embed page.html
var statusHTML []byte

// statusPolicy is the page's Content-Security-Policy. It allows the page's own script and style,
// by their hashes, and requests to the page's origin. With trusted types, no text can
// become markup, whatever names and errors contain.
var statusPolicy = sync.OnceValue(func() string {
	return fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; connect-src 'self'; img-src data:; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
		hashOf("script"), hashOf("style"))
})

// hashOf returns the hash of the content of an element of the page, in the form of a policy.
func hashOf(element string) string {
	_, rest, _ := bytes.Cut(statusHTML, []byte("<"+element+">"))
	text, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(text)
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
