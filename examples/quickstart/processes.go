package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A process is a worker process.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *workerLog

	over chan struct{} // closed: the process has ended; err says how
	err  error

	mu   sync.Mutex
	fate fate
}

// fate is what the drama has done to a process.
type fate string

const (
	running fate = "running"
	frozen  fate = "frozen"
	killed  fate = "killed"
	leaving fate = "leaving"
	left    fate = "left"
	ended   fate = "ended" // by itself, or by somebody's hand
)

func (p *process) set(f fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fate = f
}

func (p *process) is() fate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fate
}

// signal sends a signal to the process, and notes what that makes of it.
func (p *process) signal(s os.Signal, f fate) error {
	p.set(f)
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, p.name, err)
	}
	return nil
}

// await waits until the process has ended.
func (p *process) await(ctx context.Context, longest time.Duration) error {
	deadline := time.NewTimer(longest)
	defer deadline.Stop()
	select {
	case <-p.over:
		return nil
	case <-deadline.C:
		return fmt.Errorf("waited %s in vain for %s (process %d) to end", longest, p.name, p.cmd.Process.Pid)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// processes are all that were started.
type processes struct {
	url  string // of the database
	say  func(who, format string, args ...any)
	fail context.CancelCauseFunc

	mu   sync.Mutex
	list []*process
	// loose: a process may end on its own without spoiling the show.
	loose bool
}

// start starts this program again, as a worker.
func (ps *processes) start() (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program to start it as a worker: %w", err)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := &process{
		name: fmt.Sprintf("w%d", len(ps.list)+1), cmd: exec.Command(self),
		over: make(chan struct{}), fate: running,
	}
	p.log = &workerLog{name: p.name, say: ps.say, short: ps.short}
	p.cmd.Env = append(os.Environ(), workerEnv+"="+p.name, "DATABASE_URL="+ps.url)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = ownGroup()
	// Nothing is ever written there. It ends when this process does, and so
	// does the worker, however that comes about.
	if _, err = p.cmd.StdinPipe(); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	ps.list = append(ps.list, p)
	go ps.reap(p)
	return p, nil
}

// reap waits for the process to end, which spoils the show unless it was to.
func (ps *processes) reap(p *process) {
	p.err = p.cmd.Wait()
	p.log.flush()
	defer close(p.over)
	switch fate := p.is(); {
	case fate == killed:
	case fate == leaving && p.err == nil:
		p.set(left)
	case ps.mayEnd():
		p.set(ended)
		ps.say(p.name, "has ended: %v", exit(p.err))
	default:
		ps.fail(fmt.Errorf("%s ended unasked: %v%s", p.name, exit(p.err), p.log.tail()))
	}
}

func exit(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (ps *processes) mayEnd() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.loose
}

// loosen lets processes end from now on: somebody may try things by hand.
func (ps *processes) loosen() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.loose = true
}

// all returns the processes in the order in which they were started.
func (ps *processes) all() []*process {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.Clone(ps.list)
}

// named returns the name of the process with this id, or the id.
func (ps *processes) named(pid string) string {
	for _, p := range ps.all() {
		if strconv.Itoa(p.cmd.Process.Pid) == pid {
			return p.name
		}
	}
	return pid
}

// short puts the names of processes for the ids of workers.
func (ps *processes) short(text string) string {
	return workerID.ReplaceAllStringFunc(text, func(id string) string {
		pid, incarnation := parseID(id)
		return ps.named(pid) + incarnation
	})
}

// kill ends all that still runs, whatever state it is in.
func (ps *processes) kill() {
	for _, p := range ps.all() {
		p.mu.Lock()
		if p.fate != left && p.fate != ended {
			p.fate = killed
		}
		p.mu.Unlock()
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.over
	}
}

// A workerLog takes what a worker prints, line by line: its log, as JSON, and
// whatever else there may be, such as a panic.
type workerLog struct {
	name  string
	say   func(who, format string, args ...any)
	short func(string) string

	line []byte

	mu    sync.Mutex
	other []string // the last lines that are not the log's
	said  string   // the last line that was shown
}

const (
	lineMax  = 64 << 10 // what is longer is cut in pieces
	otherMax = 20
)

// Write is called from one goroutine.
func (l *workerLog) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		l.line = append(l.line, line...)
		if ended || len(l.line) > lineMax {
			l.flush()
		}
		rest = after
	}
	return len(p), nil
}

func (l *workerLog) flush() {
	if line := string(bytes.TrimSpace(l.line)); line != "" {
		l.take(line)
	}
	l.line = l.line[:0]
}

// An entry is a line of the log, as far as it matters here.
type entry struct {
	Level      string
	Msg        string
	Error      string
	Projection string
	Workers    []string
}

// take shows a line if it tells what the tables don't: all warnings, and of
// the rest that a commit was refused.
func (l *workerLog) take(line string) {
	var e entry
	if err := json.Unmarshal([]byte(line), &e); err != nil && !isTypeError(err) || e.Msg == "" {
		l.mu.Lock()
		l.other = append(l.other, line)
		l.other = l.other[max(0, len(l.other)-otherMax):]
		l.mu.Unlock()
		return
	}
	if e.Level == "INFO" && !strings.HasPrefix(e.Msg, "commit refused") || e.Level == "DEBUG" {
		return
	}
	text := e.Msg
	if e.Projection != "" {
		text = e.Projection + ": " + text
	}
	if e.Error != "" {
		text += ": " + e.Error
	}
	if len(e.Workers) > 0 {
		text += ": " + strings.Join(e.Workers, " ")
	}
	if text = l.short(text); text != l.said {
		l.said = text
		l.say(l.name, "%s", text)
	}
}

// isTypeError: the line is JSON, but a field is not what it is elsewhere.
func isTypeError(err error) bool {
	var typeError *json.UnmarshalTypeError
	return errors.As(err, &typeError)
}

// tail returns the last lines that are not the log's, for an error message.
func (l *workerLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.other) == 0 {
		return ""
	}
	return "\n  " + strings.Join(l.other, "\n  ")
}
