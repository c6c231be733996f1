package main

import (
	"context"
	"io"
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
	for buffer := make([]byte, 16); ; {
		n, err := in.Read(buffer)
		for _, key := range buffer[:n] {
			switch key {
			case keyKill, keyFreeze, keyAdd, keyQuit:
				select {
				case keys <- key:
				default:
				}
			}
		}
		if err != nil || ctx.Err() != nil {
			return
		}
	}
}
