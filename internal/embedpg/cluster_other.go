//go:build !linux && !darwin && !freebsd

package embedpg

import (
	"context"
	"net/url"
	"runtime"
)

// cluster is a stub: supervisor and lock do not exist for this system. The environment variable
// works everywhere.
type cluster struct{}

func startCluster(_ context.Context, _ Options, _ machine, tried *attempts) (*cluster, string, error) {
	tried.add("a server of its own: not supported on %s", runtime.GOOS)
	return nil, "", nil
}

func (*cluster) url() url.URL                          { return url.URL{} }
func (*cluster) restart(context.Context, func()) error { return nil }
func (*cluster) close() error                          { return nil }
