package testworld

import (
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// A Log forwards a log and keeps a copy.
type Log struct {
	To io.Writer

	mu   sync.Mutex
	text strings.Builder
}

func (l *Log) Write(line []byte) (int, error) {
	l.mu.Lock()
	l.text.Write(line)
	l.mu.Unlock()
	return l.To.Write(line)
}

// Wait waits until the log contains text.
func (l *Log) Wait(t testing.TB, text string) {
	t.Helper()
	pgtest.Eventually(t, "the log says "+text, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return strings.Contains(l.text.String(), text)
	})
}

// Count returns how often the log contains text.
func (l *Log) Count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}
