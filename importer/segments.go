package importer

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Segments describes the tables of github.com/pupsourcing/core. There is a row for each
// segment of a consumer: segment_id is the partition, and total_segments the total.
type Segments struct {
	// Schema is the PostgreSQL schema of the tables. Default: as found by the search path.
	Schema string
	// Table is the table of the segments. Default: consumer_segments.
	Table string
	// WorkersTable is the table of the registered workers. Default: consumer_workers.
	WorkersTable string
}

// PartitionStrategy decides which partition an aggregate is in. It is the interface of that
// name in pupsourcing and its successors.
type PartitionStrategy interface {
	ShouldProcess(aggregateID string, partition, total int) bool
}

// workerSilence is how long a worker must have sent no heartbeat to count as gone. It is the
// default after which the old processors declare each other dead.
const workerSilence = 30 * time.Second

func (s Segments) table() store.OldTable { return store.OldTable{Schema: s.Schema, Table: s.Table} }

// lock locks the segments of the projection and returns their positions.
func (s Segments) lock(ctx context.Context, c Config, i *store.Import) (keys []string, positions []int64, err error) {
	if err := s.idle(ctx, c, i); err != nil {
		return nil, nil, err
	}
	segments, busy, err := i.LockSegments(ctx, c.Projection)
	if err != nil {
		return nil, nil, err
	}
	if len(busy) > 0 {
		return nil, nil, lockedError(s.table(), busy)
	}
	if owners := ownersOf(segments); owners != "" {
		return nil, nil, fmt.Errorf("%w: in table %s, %s; stop the workers, which makes them give their segments back; if one is dead, run UPDATE %s SET owner_id = NULL WHERE consumer_name = '…', then import",
			ErrStillMoving, s.table().Name(), owners, s.table().Name())
	}
	if problem := segmentsProblem(segments, c.Projection, c.Total); problem != "" {
		return nil, nil, fmt.Errorf("%w: %s (table %s, importer.Config.Total %d)", ErrOldCheckpoints, problem, s.table().Name(), c.Total)
	}
	for _, seg := range segments {
		keys = append(keys, fmt.Sprintf("%s, segment %d", c.Projection, seg.ID))
		positions = append(positions, seg.Position)
	}
	return keys, positions, nil
}

// idle returns an error if a worker has sent a heartbeat lately. A worker without segments
// would claim some later.
func (s Segments) idle(ctx context.Context, c Config, i *store.Import) error {
	workers := store.OldTable{Schema: s.Schema, Table: s.WorkersTable}
	worker, ago, err := i.SegmentWorker(ctx, workers, c.Projection)
	if err != nil {
		return err
	}
	if silence := max(c.Watch, workerSilence); worker != "" && ago < silence {
		return fmt.Errorf("%w: worker %q in table %s sent a heartbeat %s ago; stop it, then import; if it is dead, wait until its last heartbeat is %s old",
			ErrStillMoving, worker, workers.Name(), max(0, ago.Round(time.Second)), silence)
	}
	return nil
}

// ownersOf lists the segments that have an owner, or returns "".
func ownersOf(segments []store.Segment) string {
	var owned []string
	for _, s := range segments {
		if s.Owner != "" {
			owned = append(owned, fmt.Sprintf("segment %d is owned by worker %q", s.ID, s.Owner))
		}
	}
	return strings.Join(owned, ", ")
}

// segmentsProblem lists all problems of the segments, which are sorted, or returns "".
func segmentsProblem(segments []store.Segment, consumer string, total int) string {
	if len(segments) == 0 {
		return fmt.Sprintf("there are no segments of consumer %q", consumer)
	}
	var problems, others, negative []string
	var totals []int64
	have := map[int64]bool{}
	for _, s := range segments {
		if have[s.ID] {
			problems = append(problems, fmt.Sprintf("there are two rows of segment %d; delete one", s.ID))
		}
		have[s.ID] = true
		if s.ID < 0 || s.ID >= int64(total) {
			others = append(others, fmt.Sprint(s.ID))
		}
		if s.Position < 0 {
			negative = append(negative, fmt.Sprint(s.ID))
		}
		if !slices.Contains(totals, s.Total) {
			totals = append(totals, s.Total)
		}
	}
	var missing []string
	for k := range total {
		if !have[int64(k)] {
			missing = append(missing, fmt.Sprint(k))
		}
	}
	slices.Sort(totals)
	if len(totals) > 1 {
		problems = append(problems, fmt.Sprintf("the segments have different totals, %s: TotalSegments was changed; "+
			"if all processors ran with %d at the end, set total_segments to that in every row", strings.Trim(fmt.Sprint(totals), "[]"), total))
	} else if totals[0] != int64(total) {
		problems = append(problems, fmt.Sprintf("the segments have a total of %d", totals[0]))
	}
	if len(missing) > 0 {
		problems = append(problems, "there is no segment "+strings.Join(missing, ", "))
	}
	if len(others) > 0 {
		problems = append(problems, fmt.Sprintf("there is a segment %s as well", strings.Join(others, ", ")))
	}
	if len(negative) > 0 {
		problems = append(problems, fmt.Sprintf("the checkpoint of segment %s is negative; if it has handled nothing, set it to 0", strings.Join(negative, ", ")))
	}
	return strings.Join(problems, "; ")
}

// strategyProblem names an aggregate that the strategy puts into another partition than this
// library, or returns "".
func strategyProblem(s PartitionStrategy, total int) (problem string) {
	defer func() {
		if v := recover(); v != nil {
			problem = fmt.Sprintf("panicked: %v", v)
		}
	}()
	for n := range 20 * min(total, 50) {
		id := fmt.Sprintf("aggregate-%d", n)
		h := fnv.New32a()
		_, _ = h.Write([]byte(id))
		own := int(h.Sum32() % uint32(total))
		for k := range total {
			if s.ShouldProcess(id, k, total) != (k == own) {
				return fmt.Sprintf("does not put aggregate %q into partition %d of %d alone, where its 32-bit FNV-1a hash belongs: "+
					"checkpoints of such partitions can't be imported", id, own, total)
			}
		}
	}
	return ""
}

// lockedError is returned for rows that another transaction has locked.
func lockedError(table store.OldTable, rows []string) error {
	return fmt.Errorf("%w: another transaction has %s in %s locked: a processor that is writing, or another import; stop the processors, then import",
		ErrStillMoving, quoted(rows), table.Name())
}
