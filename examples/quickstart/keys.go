package main

import (
	"context"
	"io"

	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
)

// The keys that the demo knows.
const (
	keyKill   = 'k'
	keyFreeze = 'f'
	keyAdd    = '+'
	keyQuit   = 'q'

	keysHint = "keys: k kill · f freeze or wake · + add a worker · q finish now"
)

// readKeys sends what is typed to keys, until in ends or ctx does. A key that comes while
// the ones before it are being acted on is dropped.
func readKeys(ctx context.Context, in io.Reader, keys chan<- byte) {
	terminal.ReadKeys(in, func(key terminal.Key) bool {
		switch key {
		case keyKill, keyFreeze, keyAdd, keyQuit:
			select {
			case keys <- byte(key):
			default:
			}
		}
		return ctx.Err() == nil
	})
}
