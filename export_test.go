package orchestrator

import (
	"context"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// ReadOwn is readOwn, of the slots of a partition.
func (t *Table[E]) ReadOwn(ctx context.Context, partition, total int, after int64, limit, bytes int) (events []Record[E], passed int64, more bool, err error) {
	slots := protocol.SlotsOf(partition, total)
	p, err := t.readOwn(ctx, &slots, after, limit, bytes)
	return p.events, p.passed, p.more, err
}
