package orchestrator

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// What a program sets, with its defaults, and what is wrong with it: every error names the
// field.

// ReplicaSetName names a group of projections that scale together.
type ReplicaSetName string

// A ReplacementWindow that is not 0 is no shorter, and no longer.
const (
	replacementWindowMin = time.Millisecond
	replacementWindowMax = time.Hour
)

// maxPartitions is the largest number of partitions that a replica set can have.
const maxPartitions = protocol.Slots

// Config configures an Orchestrator. DB, EventStore and ReplicaSet are
// required; a zero in any other field means its default.
//
// The workers of one replica set should have the same timeouts.
type Config[E any] struct {
	// DB is the database in which the workers find each other and in which the
	// progress and the writes of transactional projections are committed. It
	// needs two connections for coordination, of which the worker keeps one, one
	// to read (of the EventStore's, if that has another) and, for each projection
	// on each partition, one for its transaction, beside those that handlers take
	// for themselves. Let the pool keep as many idle (sql.DB.SetMaxIdleConns; its
	// default is 2).
	DB *sql.DB
	// EventStore is where the events come from.
	EventStore EventStore[E]
	// ReplicaSet is the group that this worker belongs to: at most 200 bytes,
	// no control characters.
	ReplicaSet ReplicaSetName
	// Schema is the PostgreSQL schema of the library's tables: at most 63 bytes. It
	// is the same for all workers of the set, for Migrate and for package ops
	// (InSchema). Default: the schema that the search path leads to when the worker
	// first looks.
	Schema string

	// HeartbeatInterval is how often the worker renews its lease and looks for
	// a new generation. At least 10ms. Default: 5s.
	HeartbeatInterval time.Duration
	// StaleWorkerTimeout is the length of the lease: how long after its last
	// heartbeat the partitions of a worker stay idle that is frozen, or whose
	// crash can't be seen sooner (see LeaseOnly). A worker that can't reach the
	// database gives up its lease by itself after four fifths of it. At least
	// three times HeartbeatInterval. Default: 30s.
	StaleWorkerTimeout time.Duration
	// CoordinationTimeout is how long a handler may go on after it was asked
	// to stop. After half of it, the handler's context is cancelled; after all
	// of it, Run returns ErrCoordinationTimeout. Default: 60s.
	CoordinationTimeout time.Duration
	// BatchSize is how many events are handled at most between two commits.
	// Default: 100.
	BatchSize int

	// Partitions is how many partitions the worker takes, and handles side by
	// side, each with its own order: where handlers wait for something, several
	// do as much as several workers. At most 5040. Default: 1.
	Partitions int
	// MaxPartitions is the largest number of partitions; workers beyond it
	// wait as standbys. The newest worker's value is the set's. At most 5040.
	// Default: 0, as many as the workers take.
	MaxPartitions int
	// JoinWindow is how long the first of several joining workers waits for
	// the others, so that they cost one new generation. Default: 500ms.
	JoinWindow time.Duration
	// ReplacementWindow is how long this worker's place is kept when Run is asked to stop: its
	// partitions stay assigned to it, and the next worker that joins takes them as they
	// are. The others don't pause, neither for the one that leaves nor for the one that
	// comes, so a roll-out that stops a pod before it starts the next one costs no pause
	// at all, instead of two for each pod. Set it a little longer than it takes from a pod's
	// last handler to its replacement's start. Nobody handles the events of these
	// partitions meanwhile; when nobody has come in time, the others share them, with a
	// pause, as they do at once without it. That is the reason for the default: a worker
	// that is stopped for good would be waited for, and a pause takes some ten
	// milliseconds. It is for workers that are stopped from outside: who crashes, ends
	// with an error, or could not end all of its commits, leaves nothing behind to be taken,
	// and CatchUp leaves at once. From 1ms to 1h. Default: 0, no place is kept.
	ReplacementWindow time.Duration
	// PollInterval is the longest time between two looks for new events when
	// there are none. Looks come quickly after an event, and then ever less
	// often. Default: 1s.
	PollInterval time.Duration
	// ReadAheadBytes is about how much of the event stream may be kept in memory:
	// what is read ahead of the handlers, and what slower projections have still
	// to handle. It is for all workers of the process with the same EventStore;
	// the largest value counts. At least an event is kept. Default: 16 MiB.
	ReadAheadBytes int
	// Retry is the delay before a failed event is handled again. Default: see Retry.
	Retry Retry
	// OnFailure says what a handler's failure does. Default: RetryForever.
	OnFailure FailurePolicy
	// Failures are for projections, by name, for which it does something else.
	// Run refuses a name that none of its projections has. Default: none.
	Failures map[string]FailureRule

	// Around is called for each call of a handler, in its place, and calls next for the
	// handler itself: for traces, logs, metrics, deadlines of all projections. It gives
	// next its own ctx, or one made from that, and returns what next has returned, or an
	// error of its own; that is what counts as the handler's. A panic of the handler's is a
	// *PanicError that next returns. It calls next once at most, and waits for it. If it
	// returns nil and has not called next, calls it again, or returns before next has, the
	// call has failed, with an error that says so. EventsFrom(ctx) are the events. Several
	// calls run at the same time. It is not called for an event that can't be read.
	// Default: none.
	Around func(ctx context.Context, d Delivery, next func(ctx context.Context) error) error

	// LeaseOnly disables fast crash detection: a crash of this worker is noticed
	// when its lease is over. By default the worker keeps a connection of DB for
	// itself; the others see when that ends, and take over within two seconds. The
	// price: where the worker can't reach the database for 0.65s, running handlers
	// are cancelled, and called again when it can. Set LeaseOnly where handlers take
	// long and must not be cancelled. It is implied, and logged once, behind a
	// transaction pooler, where answers of the database mostly take more than 0.1s,
	// where handlers were cancelled again and again, where the pool's limit
	// (SetMaxOpenConns) is below four for each worker that shares it, and where
	// StaleWorkerTimeout is below 4s. Default: false.
	LeaseOnly bool

	// Notifier makes workers react in milliseconds instead of within a second (under
	// LeaseOnly, at their next heartbeat): it listens on one connection to the database of DB, for all workers
	// of the process with the same Notifier. Package pqnotify has one, whatever DB's
	// driver. What it hears only makes workers look sooner. While it hears nothing,
	// they look as without it: when the connection is away
	// (which is logged once, and tried again), and behind a pooler that shares
	// connections between transactions, where LISTEN is of no use: connect to the
	// server itself. Default: none.
	Notifier Notifier
	// EventsChannel is a channel that you NOTIFY, with any payload, in
	// transactions that append events, for example in a trigger. The process
	// looks for new events when the Notifier, which must be set, hears of it. While
	// such hints come it also looks on its own, once in five times PollInterval at
	// least; when the connection is away, or has not brought one yet, once in
	// PollInterval. At most 63 bytes, and as it is: NOTIFY makes names without quotes
	// lower case. Default: none.
	EventsChannel string

	// Logger gets a line for each generation and each thing that is wrong. Where it
	// does not take one for a second, records are left out until it does.
	// docs/operations.md lists the messages and their keys. No connection string
	// and no password gets there. Default: slog.Default(). For silence, set it to
	// slog.New(slog.DiscardHandler).
	Logger *slog.Logger
	// Observer is told what the worker does, for metrics and traces. Default: none.
	Observer *Observer
	// StallAfter is how long a partition of a projection may stand still, although
	// there is something for it to handle, before that is logged and told to the
	// Observer, with the reason. Default: 1 minute.
	StallAfter time.Duration

	own map[string]projectionSettings // of projections that have some
}

// Retry is an exponential backoff: the first retry comes after Min, each
// further one after twice the time, up to Max; jitter takes off up to half.
type Retry struct {
	// Min is the delay of the first retry. Default: 100ms.
	Min time.Duration
	// Max is the longest delay. At least Min. Default: 30s.
	Max time.Duration
}

const (
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// withDefaults returns it with its zeros replaced.
func (r Retry) withDefaults() Retry {
	return Retry{Min: cmp.Or(r.Min, retryMin), Max: cmp.Or(r.Max, retryMax)}
}

// batchSize, retry and stallAfter are what holds for a projection.
func (c Config[E]) batchSize(projection string) int {
	if own := c.own[projection].batch; own != nil {
		return *own
	}
	return c.BatchSize
}

func (c Config[E]) retry(projection string) Retry {
	if own := c.own[projection].retry; own != nil {
		return own.withDefaults()
	}
	return c.Retry
}

func (c Config[E]) stallAfter(projection string) time.Duration {
	if own := c.own[projection].stall; own != nil {
		return *own
	}
	return c.StallAfter
}

// A FailurePolicy says what happens when a handler returns an error or panics.
type FailurePolicy int

const (
	// RetryForever retries the event until it succeeds. Its partition of the
	// projection waits; other projections go on.
	RetryForever FailurePolicy = iota
	// StopOnFailure commits what precedes the event, leaves the replica set,
	// and makes Run return a HandlerError.
	StopOnFailure
	// ParkEvents goes on without the event, and without the later ones of its
	// aggregate, which wait behind it in the table orchestrator_parked: the order
	// within the aggregate is kept. Nothing of that is handled until it is asked
	// for: see ops.Parked, ops.RetryParked, ops.DiscardParked.
	ParkEvents
)

// A FailureRule says when a projection's handler has failed often enough, and
// what happens then. Zero fields mean their defaults. The counts are the worker's own:
// another one starts anew.
//
// Deadlocks and serialization failures (SQLSTATE 40P01, 40001) are expected to pass by
// themselves, and are retried without being counted. An interruption is no failure at
// all, and no attempt: the library has cancelled the handler's context, the handler's
// connection to the database was lost or could not be made (08…; for a transactional
// projection, everything that a lost connection looks like), or the server stops, starts
// or is full (57P01 to 57P05, 53300). When there were more than three times Attempts of
// either but cancelled contexts in a row, at the same event, alone, over more than
// StaleWorkerTimeout, each further one counts as a failure, too. All others count at once,
// also the limits that a handler runs into: statement_timeout, lock_timeout,
// temp_file_limit, a deadline of its own, a transaction that it left idle.
type FailureRule struct {
	// Policy says what happens when the handler has failed often enough.
	Policy FailurePolicy
	// Attempts is how often the handler has to fail at the event, alone. Once is enough
	// for an error that is Permanent.
	// Default: 1 for StopOnFailure, else 5. RetryForever has no use for it.
	Attempts int
	// MaxParked is how many events of a partition may be parked. Where there is
	// no room for one that has to be, the partition of the projection waits until
	// some were retried or discarded. Default: 1000.
	MaxParked int
}

// failureRule returns the rule for a projection, with its zeros replaced.
func (c Config[E]) failureRule(projection string) FailureRule {
	rule, ok := c.Failures[projection]
	if !ok {
		rule.Policy = c.OnFailure
	}
	if rule.Attempts == 0 && rule.Policy == StopOnFailure {
		rule.Attempts = 1
	}
	rule.Attempts, rule.MaxParked = cmp.Or(rule.Attempts, 5), cmp.Or(rule.MaxParked, 1000)
	return rule
}

// failuresProblem says what is wrong with which of the fields about failures.
func (c Config[E]) failuresProblem() (field, problem string) {
	if p := policyProblem(c.OnFailure); p != "" {
		return "OnFailure", p
	}
	for _, name := range slices.Sorted(maps.Keys(c.Failures)) {
		if field, problem := c.Failures[name].problem(); problem != "" {
			return fmt.Sprintf("Failures[%q].%s", name, field), problem
		}
	}
	return "", ""
}

// problem says what is wrong with which field.
func (r FailureRule) problem() (field, problem string) {
	switch {
	case policyProblem(r.Policy) != "":
		return "Policy", policyProblem(r.Policy)
	case r.Attempts < 0:
		return "Attempts", fmt.Sprintf("is %d; it can't be negative", r.Attempts)
	case r.MaxParked < 0:
		return "MaxParked", fmt.Sprintf("is %d; it can't be negative", r.MaxParked)
	}
	return "", ""
}

func policyProblem(p FailurePolicy) string {
	if p < RetryForever || p > ParkEvents {
		return fmt.Sprintf("is %d; it must be RetryForever, StopOnFailure or ParkEvents", p)
	}
	return ""
}

// checkFailures makes sure that the rules are for projections that there are.
func (c Config[E]) checkFailures(names []string) error {
	for _, name := range slices.Sorted(maps.Keys(c.Failures)) {
		if !slices.Contains(names, name) {
			return configError("Failures", fmt.Sprintf("has a rule for %q, but Run was given no such projection", name))
		}
	}
	return nil
}

// withSettingsOf returns the config with what the projections bring along by themselves
// (ProjectionOption).
func (c Config[E]) withSettingsOf(projections []Projection[E]) (Config[E], error) {
	rules := maps.Clone(c.Failures)
	c.own = map[string]projectionSettings{}
	for _, p := range projections {
		own, ok := p.(interface{ settings() projectionSettings })
		if !ok {
			continue
		}
		name := own.settings().name
		c.own[name] = own.settings()
		if option, problem := c.own[name].problem(); problem != "" {
			return c, fmt.Errorf("%w: %s of projection %q %s", ErrInvalidConfig, option, name, problem)
		}
		if own.settings().rule == nil {
			continue
		}
		if _, twice := rules[name]; twice {
			return c, configError("Failures", fmt.Sprintf("has a rule for %q, which has one of its own (WithFailureRule); remove one of the two", name))
		}
		if rules == nil {
			rules = map[string]FailureRule{}
		}
		rules[name] = *own.settings().rule
	}
	c.Failures = rules
	return c, nil
}

// withDefaults returns the config with its zeros replaced, or what is wrong.
func (c Config[E]) withDefaults() (Config[E], error) {
	if c.DB == nil {
		return c, configError("DB", "is nil; open a database with sql.Open")
	}
	if isNil(c.EventStore) {
		return c, configError("EventStore", "is nil; use NewEventTable or an EventStore of your own")
	}
	if problem := store.NameProblem(string(c.ReplicaSet)); problem != "" {
		return c, configError("ReplicaSet", problem)
	}
	if problem := store.SchemaProblem(c.Schema); problem != "" && c.Schema != "" {
		return c, configError("Schema", problem)
	}
	for _, d := range []struct {
		field    string
		value    *time.Duration
		fallback time.Duration
	}{
		{"HeartbeatInterval", &c.HeartbeatInterval, 5 * time.Second},
		{"StaleWorkerTimeout", &c.StaleWorkerTimeout, 30 * time.Second},
		{"CoordinationTimeout", &c.CoordinationTimeout, 60 * time.Second},
		{"JoinWindow", &c.JoinWindow, 500 * time.Millisecond},
		{"ReplacementWindow", &c.ReplacementWindow, 0},
		{"PollInterval", &c.PollInterval, time.Second},
		{"Retry.Min", &c.Retry.Min, retryMin},
		{"Retry.Max", &c.Retry.Max, retryMax},
		{"StallAfter", &c.StallAfter, time.Minute},
	} {
		if *d.value < 0 {
			return c, configError(d.field, fmt.Sprintf("is %s; it can't be negative", *d.value))
		}
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	for _, n := range []struct {
		field    string
		value    *int
		fallback int
	}{{"BatchSize", &c.BatchSize, 100}, {"ReadAheadBytes", &c.ReadAheadBytes, 16 << 20}, {"Partitions", &c.Partitions, 1}} {
		if *n.value < 0 {
			return c, configError(n.field, fmt.Sprintf("is %d; it can't be negative", *n.value))
		}
		if *n.value == 0 {
			*n.value = n.fallback
		}
	}
	switch {
	case c.HeartbeatInterval < 10*time.Millisecond:
		return c, configError("HeartbeatInterval", fmt.Sprintf("is %s; the least is 10ms", c.HeartbeatInterval))
	case c.StaleWorkerTimeout < 3*c.HeartbeatInterval:
		return c, configError("StaleWorkerTimeout", fmt.Sprintf(
			"is %s, with a HeartbeatInterval of %s; it must be at least three times that, or a single late heartbeat costs the lease",
			c.StaleWorkerTimeout, c.HeartbeatInterval))
	case c.ReplacementWindow > 0 && c.ReplacementWindow < replacementWindowMin:
		return c, configError("ReplacementWindow", fmt.Sprintf("is %s; the least is %s, or 0 for none", c.ReplacementWindow, replacementWindowMin))
	case c.ReplacementWindow > replacementWindowMax:
		return c, configError("ReplacementWindow", fmt.Sprintf("is %s; the most is %s: the partitions of a worker that is never replaced are idle for that long", c.ReplacementWindow, replacementWindowMax))
	case c.Partitions > maxPartitions:
		return c, configError("Partitions", fmt.Sprintf("is %d; the most is %d", c.Partitions, maxPartitions))
	case c.MaxPartitions < 0 || c.MaxPartitions > maxPartitions:
		return c, configError("MaxPartitions", fmt.Sprintf("is %d; it must be between 0 (no limit) and %d", c.MaxPartitions, maxPartitions))
	case c.Retry.Max < c.Retry.Min:
		return c, configError("Retry.Max", fmt.Sprintf("is %s, less than Retry.Min, which is %s", c.Retry.Max, c.Retry.Min))
	}
	if field, problem := c.failuresProblem(); problem != "" {
		return c, configError(field, problem)
	}
	if field, problem := c.hintsProblem(); problem != "" {
		return c, configError(field, problem)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = slog.New(redact.Handler(safeLogger(c.Logger).Handler()))
	return c, nil
}

// hintsProblem says what is wrong with which of the fields that are for hints.
func (c Config[E]) hintsProblem() (field, problem string) {
	if c.Notifier != nil && isNil(c.Notifier) {
		return "Notifier", "is a nil pointer"
	}
	switch channel := c.EventsChannel; {
	case channel == "":
		return "", ""
	case c.Notifier == nil:
		return "EventsChannel", "is set without a Notifier to listen to it; set both (package pqnotify has a Notifier)"
	case len(channel) > maxChannelBytes:
		return "EventsChannel", fmt.Sprintf("is %d bytes long; the most is %d", len(channel), maxChannelBytes)
	}
	return "EventsChannel", store.NameProblem(c.EventsChannel)
}

// maxChannelBytes is what PostgreSQL takes.
const maxChannelBytes = 63

func configError(field, problem string) error {
	return fmt.Errorf("%w: Config.%s %s", ErrInvalidConfig, field, problem)
}

// isNil also finds an interface that holds a nil pointer.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return r.Kind() == reflect.Pointer && r.IsNil()
}

// projectionNames checks the projections and returns their names.
func projectionNames[E any](projections []Projection[E]) ([]string, error) {
	if len(projections) == 0 {
		return nil, fmt.Errorf("%w: Run was given no projections", ErrInvalidConfig)
	}
	var names []string
	seen := map[string]int{}
	for i, p := range projections {
		if isNil(p) {
			return nil, fmt.Errorf("%w: projections[%d] is nil", ErrInvalidConfig, i)
		}
		if f, ok := p.(interface{ settings() projectionSettings }); ok && f.settings().missing {
			return nil, fmt.Errorf("%w: projections[%d], %q, has a nil handler", ErrInvalidConfig, i, f.settings().name)
		}
		name, err := apart("Name", func() (string, error) { return p.Name(), nil })
		if err != nil {
			return nil, fmt.Errorf("%w: Name of projections[%d] (%T) failed: %w", ErrInvalidConfig, i, p, err)
		}
		if problem := store.NameProblem(name); problem != "" {
			return nil, fmt.Errorf("%w: the name of projections[%d] %s", ErrInvalidConfig, i, problem)
		}
		if first, ok := seen[name]; ok {
			return nil, fmt.Errorf("%w: projections[%d] and projections[%d] are both named %q", ErrInvalidConfig, first, i, name)
		}
		seen[name] = i
		names = append(names, name)
	}
	return names, nil
}
