//go:build linux || darwin || freebsd

package embedpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	downloadVersion = embeddedpostgres.V18 // its default, so it is likely to be in the cache
	downloadMax     = 2 * time.Minute      // whole archive, some 10 MB
	answerMax       = 10 * time.Second     // each of connecting and the first byte
)

// download unpacks PostgreSQL's binaries into a folder below run.
//
// embedded-postgres has no function for that, only Start, which also runs initdb. So its data
// path here is one that can't exist, below a file: Start fails after the download and before it
// runs a program. It leaves its log behind, an empty file in the temporary folder.
func download(ctx context.Context, m machine, run, into string) error {
	ctx, cancel := context.WithTimeout(ctx, downloadMax)
	defer cancel()
	relay, err := newRelay(ctx, m.repository)
	if err != nil {
		return err
	}
	defer relay.close()

	err = embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		BinaryRepositoryURL(relay.url).
		CachePath(cache(m, run)).
		RuntimePath(into). // the binaries go there too, since no other path is given
		DataPath(filepath.Join(run, "lock", "none")).
		Port(0). // Start checks that the port is free; 0 always is
		Logger(io.Discard)).
		Start()

	switch {
	case err == nil:
		return errors.New("embedded-postgres started a server with an impossible data path")
	case strings.Contains(err.Error(), "unable to clean up data directory"):
		return nil
	case relay.failure() != nil:
		return relay.failure()
	}
	return err
}

// cache returns the permanent folder for archives, if it is writable.
func cache(m machine, run string) string {
	if m.cache != "" && os.MkdirAll(m.cache, 0o755) == nil {
		return m.cache
	}
	return filepath.Join(run, "archives")
}

// relay forwards requests to the repository with timeouts. embedded-postgres has none: it would
// wait for a silent host forever and can't be interrupted.
type relay struct {
	url    string
	server *http.Server
	client *http.Client

	mu  sync.Mutex
	err error
}

func newRelay(ctx context.Context, repository string) (*relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{
		url: "http://" + listener.Addr().String(),
		client: &http.Client{Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: answerMax}).DialContext,
			TLSHandshakeTimeout:   answerMax,
			ResponseHeaderTimeout: answerMax,
			ForceAttemptHTTP2:     true,
		}},
	}
	r.server = &http.Server{
		ReadHeaderTimeout: answerMax,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if err := r.pass(ctx, w, repository+req.URL.Path); err != nil {
				r.fail(err)
				panic(http.ErrAbortHandler) // ends the answer early, so that the client sees that it is incomplete
			}
		}),
	}
	go func() { _ = r.server.Serve(listener) }() // until close
	return r, nil
}

func (r *relay) pass(ctx context.Context, w http.ResponseWriter, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		r.fail(fmt.Errorf("%s: %s", address, resp.Status))
	}
	if length := resp.Header.Get("Content-Length"); length != "" {
		w.Header().Set("Content-Length", length)
	}
	w.WriteHeader(resp.StatusCode)
	_, err = io.Copy(w, resp.Body)
	return err
}

// fail keeps the first failure, which causes the later ones.
func (r *relay) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

func (r *relay) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *relay) close() {
	_ = r.server.Close()
	r.client.CloseIdleConnections()
}
