// Package protocol decides everything that the library decides, and does nothing else. It has
// no clock, no I/O, no goroutines and no randomness: the time and random numbers are
// arguments, and no map order reaches a result. The same calls in the same order return the
// same results. A lint rule (internal/lint/pure) checks that.
//
// The package is the contract between these decisions and the code that drives them: the
// root package with PostgreSQL, and the simulation (sim) with a database in memory. A driver
// carries out what it is told to do, reports how that went, and decides nothing by itself.
//
// # The machines
//
//	Step      the coordinator: turns the members of a replica set into generations
//	Session   one worker's side of it: when to ask, what to start and stop
//	Lane      one projection on one partition: read, handle, commit, park
//	Feed      one read of the event stream for all lanes of a process
//	Reading   one page of an events table, read without losing an event
//	Ending    the end of an events table, where a projection that wants new events starts
//	Promotion a rebuilt projection takes the place of the live one
//
// Session, Lane, Reading, Ending and Promotion are driven in one way: the driver calls Next with
// the time and with what has happened, and gets one action, or a list of actions, to carry out.
// It reports the outcome of an action with a later call of Next. Calls for one machine must not
// overlap, nor calls for Readings that share a Horizon.
//
// # The coordinator
//
// There is no leader. Each worker runs Step itself, on a Group that it has read from the
// database, and saves the result only if no other worker has changed the group meanwhile:
//
//	lock and load the group g; read the database's clock: now
//	if g.Refuses(request): fail with Facts.Stranger
//	if request.Order != nil: fail with the error of request.Order.Check(g), if any
//	g, d := Step(Apply(g, request, now), now, request.Watch)
//	if d.Activated: replace each projection's checkpoints by
//	    Handoff(Rewound(projection, checkpoints, d.Rewinds), g.Total)
//	save g; commit
//	answer with g.View(request.Worker, now, d)
//
// Instead of the lock, a driver may compare versions when it saves, and begin again if
// another worker was faster. A Request.Heartbeat needs neither the lock nor Step: it renews
// the lease in the worker's own row and returns the View of that row.
//
// A generation is one numbered assignment of all partitions to workers. It is a fencing
// token: the number only grows, and each commit names it.
//
//	          a worker joins, leaves or expires,                 no member holds an
//	          or an operator gives an order                      older generation
//	active(g) ───────────────────────────────────▶ draining(g+1) ─────────────────▶ active(g+1)
//	                                                  │     ▲
//	                                                  └─────┘ another change: g+2 instead
//
// A worker runs its partitions of an active generation only. A member holds a generation
// (Member.Holds) from its activation on until the member reports that all of its handlers
// have returned, or until it is removed. So two workers never run the same partition.
//
// # A worker
//
// Next of a Session takes an Input and returns Actions. The loop that drives it:
//
//	s := protocol.NewSession(name, timing, settings)
//	s.Present() // optional: detect a crash by an advisory lock, and not by the lease alone
//	var in protocol.Input = protocol.Tick{}
//	for {
//		s.Handling(handlersRunning())
//		actions := s.Next(now(), in)
//		publish(s.Terms()) // until when lanes may call handlers; before any action
//		for _, action := range actions {
//			switch a := action.(type) {
//			case protocol.Sync:
//				go send(a.Request) // then Synced, or SyncFailed
//			case protocol.Start:
//				go runLanes(a.Share) // then Stopped, once all lanes have ended
//			case protocol.Drain:
//				drain(a.Generation) // the lanes' Signals.Asked
//			case protocol.Cancel:
//				cancel(a.Generation) // the lanes' Signals.Canceled, and the handlers' contexts
//			case protocol.Suspend:
//				cancelHandlers() // their contexts only: the lanes call them again
//			case protocol.Attach:
//				go attach(a) // then Attached, or Detached
//			case protocol.Prove:
//				go prove(a) // then Proven, or Detached
//			case protocol.Forgo:
//				closeSession() // crash detection is off from now on
//			case protocol.Wake:
//				timer.Reset(a.At) // then Tick
//			case protocol.GiveUp:
//				remember(a.Why) // the worker stops; Run returns this error in the end
//			case protocol.LaneMissing:
//				log(a)
//			case protocol.Exit:
//				return
//			}
//		}
//		in = <-inputs
//	}
//
// Answers may be late, may come twice, or may never come. An answer for an earlier incarnation of
// the worker is ignored. A request whose answer was lost is sent again, which does no harm:
// Apply and Step are idempotent. The diagram of a worker's states is at Session.
//
// # A lane
//
//	l := protocol.NewLane(assignment, config)
//	var answer protocol.LaneAnswer
//	for {
//		a := l.Next(now(), signals(), answer)
//		keep(l.Kept())         // which events of the page that was just answered to keep
//		if a.Rollback { ... }  // first: roll back the open transaction
//		if a.Do == protocol.LaneEnd { return a }
//		found, err := carryOut(a)
//		_, failure := l.Judge(now(), factsOf(err), cancelled, terms)
//		answer = protocol.LaneAnswer{Failure: failure, ...found}
//	}
//
// The action that ends a lane says what the session is to hear of it: LaneEndWhy.Tells, and
// Settled for Stopped. Signals come from Session.Terms and from the actions Drain and Cancel.
//
// # A feed
//
// All lanes of a process share one Feed. A lane's LaneRead is a call of Ask; if Serving.Wait is
// true, the lane asks again after the window's read. After each call the driver begins the reads
// that Fetches returns, answers each with Fetched or Failed, and calls Fetches again at the time
// that Next returns. It keeps the events; the Feed keeps their keys.
//
// # Who is authoritative
//
//	which generation is the newest, and who has which partition   the group's rows
//	whether a worker may start                                     its own row (View.May)
//	when another worker's lease is over                            the database's clock, and the
//	                                                               removing worker's own (Watch)
//	when a worker's own lease is over                              its own monotonic clock
//	how far a projection is                                        the checkpoint rows
//	which events are parked                                        their rows
//	whether a commit counts                                        the fence: replica set, generation
//	                                                               and position in its WHERE
//
// A notification, a report and a View.StepAt are authoritative for nothing: they make a
// worker ask sooner, or tell a person something.
//
// # What happens at each failure
//
//	a worker's process ends       its advisory lock is released: it is removed 0.9s after others
//	                              see that, or when its lease is over (Presence, Member.Expired)
//	a process is frozen           it checks its Terms before each event; what it runs beyond its
//	                              lease can't commit, since a newer generation fences it
//	the database is unreachable   handlers are suspended without a proof, and cancelled when the
//	                              worker's share of the lease is used up; it rejoins as a new
//	                              incarnation
//	an answer is lost             the request is sent again; a lane reads its checkpoint to find
//	                              out whether the commit has happened (Track.Resolve)
//	a handler does not return     after half of Timing.Drain its context is cancelled, after all
//	                              of it the worker exits; others wait for its lease
//	a handler fails               it is called again after a backoff, then FailurePolicy decides
//	the database's clock steps    no lease ends by it: see Member.Expired
//	a failover loses commits      a worker whose share is not in the group any more rejoins
//	                              (Share.fits); a read notices the other server (Epoch)
//	a join arrives late           it adds a member that no process acts for; its partitions are
//	                              idle until that lease is over
//	a driver loses a lane         Session.lanes rejoins after two checks
package protocol
