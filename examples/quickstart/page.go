package main

import (
	"database/sql"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// servePage serves the library's status page on a free port of this machine, and returns
// its address. stop ends that.
func servePage(db *sql.DB) (address string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("serve the status page: %w", err)
	}
	server := &http.Server{Handler: ops.StatusHandler(db), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // it returns when stop closes the server
	return fmt.Sprintf("http://%s/", listener.Addr()), func() { _ = server.Close() }, nil
}
