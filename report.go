package orchestrator

import "time"

// A WorkerReport is what a worker says of itself about once a HeartbeatInterval,
// to its Observer and in the table orchestrator_reports. Nothing is decided by it.
type WorkerReport struct {
	Source
	// State is "joining", "standby", "waiting" (for others to stop), "running",
	// "draining" or "unproven" (it can't tell whether its partitions are its own).
	State      string `json:"state"`
	Generation int64  `json:"generation"` // that it runs, or ran last; 0: none yet
	Partitions []int  `json:"partitions"` // that it runs
	// Head is the highest position that the worker has seen in its event store; 0:
	// it can't tell.
	Head int64 `json:"head"`
	// Gap is what its readers wait at, if they do.
	Gap   *GapReport   `json:"gap,omitempty"`
	Lanes []LaneReport `json:"lanes"`
	// LeaseOnly is why a crash of the worker would be noticed by its lease only, if it
	// is so and Config.LeaseOnly is not set.
	LeaseOnly string `json:"lease_only,omitempty"`
}

// A GapReport is a missing position that a transaction may still fill.
type GapReport struct {
	Position int64     `json:"position"`
	Since    time.Time `json:"since"`
	Backends []int     `json:"backends"` // processes of the server
}

// A LaneState is what one projection is doing on one partition.
type LaneState string

// The states of a lane.
const (
	LaneIdle     LaneState = "idle"     // there is nothing to handle
	LaneReading  LaneState = "reading"  // it waits for events to be read
	LaneHandling LaneState = "handling" // its handler runs, or what it did is committed
	LaneRetrying LaneState = "retrying" // the handler has failed, and is called again
	LaneHalted   LaneState = "halted"   // the handler has failed too often: see HaltLane
	LaneFull     LaneState = "full"     // too many events are parked: see FailureRule.MaxParked
	LaneDatabase LaneState = "database" // the database has failed, and is tried again
	LaneRefused  LaneState = "refused"  // the event store can't read without losing events
	LaneBeyond   LaneState = "beyond"   // it stands beyond the end of the event stream
	LaneUnproven LaneState = "unproven" // it waits for the database to answer the worker
	LaneEnded    LaneState = "ended"    // it has stopped
)

// A LaneReport is how far one projection is on one partition.
type LaneReport struct {
	Projection      string `json:"projection"`
	Partition       int    `json:"partition"`
	TotalPartitions int    `json:"total_partitions"`
	// Position is up to where everything is handled or belongs to others. It may
	// be beyond the checkpoint, which is committed later.
	Position int64 `json:"position"`
	// Behind is how many positions of the stream are left to read or to handle;
	// about one of TotalPartitions of them is the lane's. -1: not known.
	Behind int64 `json:"behind"`
	// BehindSeconds is for how long there has been something to handle that was
	// not: the age of the oldest such event, by its own time where that is known
	// (TableConfig.Time), else by when the worker first saw that there was one.
	BehindSeconds float64   `json:"behind_seconds"`
	State         LaneState `json:"state"`
	// Since is when the lane last moved, or had nothing to do.
	Since time.Time `json:"since"`
	// Handling is the position in hand of the handler; 0: none.
	Handling int64 `json:"handling,omitempty"`
	// Attempts and Error are of the event at Position+1 or later that fails.
	Attempts int    `json:"attempts,omitempty"`
	Error    string `json:"error,omitempty"`
	Stalled  bool   `json:"stalled,omitempty"`
	Parked   int    `json:"parked,omitempty"`
	// ParkedSeconds is for how long the oldest of the parked events is.
	ParkedSeconds float64 `json:"parked_seconds,omitempty"`
}
