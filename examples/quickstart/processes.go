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

// fate is what has been done to a process.
type fate string

const (
	running fate = "running"
	frozen  fate = "frozen"
	killed  fate = "killed"
	leaving fate = "stopping"
	left    fate = "stopped"
	ended   fate = "ended" // by itself, or by a signal from outside
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
	log  func(style, who, format string, args ...any)
	fail context.CancelCauseFunc

	mu    sync.Mutex
	list  []*process
	loose bool // a process may end on its own
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
	p.log = &workerLog{name: p.name, log: ps.log, short: ps.short}
	p.cmd.Env = append(os.Environ(), workerEnv+"="+p.name, "DATABASE_URL="+ps.url)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = ownGroup()
	// Nothing is written there. It ends with this process, however that ends, and the worker
	// ends with it.
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

// reap waits for the process to end, which fails the demo unless it was to.
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
		ps.log(red, p.name, "has ended: %v", exit(p.err))
	default:
		ps.fail(fmt.Errorf("%s has ended, and was not asked to: %v%s", p.name, exit(p.err), p.log.tail()))
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

// loosen lets processes end from now on: the user may send them signals.
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
	log   func(style, who, format string, args ...any)
	short func(string) string

	line  []byte
	shown string // the last line that was shown

	mu    sync.Mutex
	other []string // the last lines that are not the log's
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
	Reason     string
	Projection string
	Workers    string
}

// take shows the warnings and errors of the log. The rest is shown from the tables.
func (l *workerLog) take(line string) {
	var e entry
	if err := json.Unmarshal([]byte(line), &e); err != nil && !isTypeError(err) || e.Msg == "" {
		l.mu.Lock()
		l.other = append(l.other, line)
		l.other = l.other[max(0, len(l.other)-otherMax):]
		l.mu.Unlock()
		return
	}
	if e.Level == "INFO" || e.Level == "DEBUG" {
		return
	}
	text := e.Msg
	if e.Projection != "" {
		text = e.Projection + ": " + text
	}
	for _, detail := range []string{e.Reason, e.Error, e.Workers} {
		if detail != "" {
			text += ": " + detail
		}
	}
	if text = l.short(text); text != l.shown {
		l.shown = text
		l.log(yellow, l.name, "logs: %s", text)
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
