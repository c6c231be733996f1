package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// A machine is where and when the figures were measured.
type machine struct {
	Date       string `json:"date"`
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	PostgreSQL string `json:"postgresql"`
	Fsync      string `json:"fsync"`
	Go         string `json:"go"`
	// The system's load averages. Other programs may have been running.
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
}

func (b *bench) machine(ctx context.Context) (machine, error) {
	m := machine{
		Date: time.Now().Format("2006-01-02"), CPU: cpuModel(), Cores: runtime.NumCPU(),
		Go: runtime.Version(), LoadBefore: loadAverage(),
	}
	d, err := b.empty(ctx)
	if err != nil {
		return m, err
	}
	err = d.db.QueryRowContext(ctx, `SELECT current_setting('server_version'), current_setting('fsync')`).Scan(&m.PostgreSQL, &m.Fsync)
	return m, err
}

// short returns the machine in one line, for charts.
func (m machine) short() string {
	version, _, _ := strings.Cut(m.PostgreSQL, " ")
	return fmt.Sprintf("%s: %s, %d cores, PostgreSQL %s (fsync %s), %s", m.Date, m.CPU, m.Cores, version, m.Fsync, m.Go)
}

func (m machine) String() string {
	return fmt.Sprintf("%s %s/%s; load average %s before, %s after", m.short(), runtime.GOOS, runtime.GOARCH, m.LoadBefore, m.LoadAfter)
}

// cpuModel and loadAverage need /proc.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:1], " ")
}
