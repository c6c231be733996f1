package ops

import (
	"bytes"
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
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// StatusHandler returns a page that shows what the replica sets of a database do:
// what stands still and why, workers, partitions and how far behind they are,
// generations, parked events. It is live, and one file that refers to no other.
// Mount it anywhere:
//
//	http.Handle("/status", ops.StatusHandler(db))
//
// At the same address it answers with JSON to those who accept application/json
// before text/html; docs/status-page.md has its fields. ?replica_set=name leaves
// out the others. While the database is away, that answer has the status 503 and
// what was known last.
//
// It reads the database once a second at most, on one connection, however many
// look at it, more seldom where that takes long, and not at all while nobody does. It asks no worker, so any program
// that reaches the database can serve it.
//
// It changes nothing, unless AllowActions is given. Who may see it is for the
// program to say: names, positions, the errors of handlers and those of the database
// are on it. A server of it needs timeouts, as any other (http.Server).
func StatusHandler(db *sql.DB, options ...StatusOption) http.Handler {
	h := &statusHandler{tables: store.Tables{DB: db}}
	for _, option := range options {
		option(h)
	}
	h.known = newStatusCache(h.tables)
	h.known.actions = h.protection != nil
	return h
}

// A StatusOption changes what StatusHandler does.
type StatusOption func(*statusHandler)

// AllowActions lets those who see the page give orders on it: Pause, Resume,
// Rewind, DrainWorker and UndrainWorker, Park, and retry or discard parked events. They
// are POST requests with a body of JSON, and refused where a browser sends them for
// the page of another site (see http.CrossOriginProtection). That is all that it
// checks: let nobody reach the handler who may not do this.
//
// The origins, say "https://ops.example.com", are those under which browsers know
// the page, where a proxy changes the Host header. If one is malformed, the handler
// answers every request with the status 500 and an error that names it.
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

// TablesInSchema shows the replica sets whose tables are in a schema of this name. See
// orchestrator.Config.Schema.
func TablesInSchema(name string) StatusOption {
	return func(h *statusHandler) { h.tables.Schema = name }
}

type statusHandler struct {
	tables     store.Tables
	misused    error // an option is wrong
	known      *statusCache
	protection *http.CrossOriginProtection // nil: there are no actions
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
		answerError(w, http.StatusMethodNotAllowed, r.Method+" is not allowed here")
	case prefersJSON(r.Header.Values("Accept")):
		h.status(w, r)
	default:
		header.Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(statusHTML) // an error says that the reader has gone
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
		answerError(w, http.StatusNotFound, fmt.Sprintf("no worker of a replica set %q has ever run", name))
		return
	}
	write(w, known.code, body)
}

func answer(w http.ResponseWriter, code int, body any) {
	text, _ := json.Marshal(body) // what is answered can be encoded
	write(w, code, append(text, '\n'))
}

// write sends an answer in JSON. Who reads slowly does not keep it for ever.
func write(w http.ResponseWriter, code int, body []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(statusWritePatience)) // where that is supported
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) // an error says that the reader has gone
}

const statusWritePatience = 30 * time.Second

func answerError(w http.ResponseWriter, code int, text string) {
	answer(w, code, map[string]string{"error": text})
}

// prefersJSON reports whether JSON is asked for by name, and before HTML.
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

// The page is the same for everybody: all that differs comes as JSON.
//
//go:embed page.html
var statusHTML []byte

// statusPolicy allows the page its own script and style, by their hashes, and
// requests to where it came from. Nothing can turn text into markup (trusted
// types), whatever projections and errors are called.
var statusPolicy = sync.OnceValue(func() string {
	return fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; connect-src 'self'; img-src data:; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
		hashOf("script"), hashOf("style"))
})

// hashOf returns the hash of what stands in an element of the page, as a policy
// names it.
func hashOf(element string) string {
	_, rest, _ := bytes.Cut(statusHTML, []byte("<"+element+">"))
	text, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(text)
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
