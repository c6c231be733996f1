package main

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Each command line in the docs is one that the command takes, or the mere name of a command;
// and docs/operations.md has all commands.
func TestCommandsOfTheDocs(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	operations := map[string]bool{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?m)(?:`|^    |^\\$ |\\| )orchestrator ([a-z][^`|\n]*)").FindAllStringSubmatch(string(text), -1) {
			name, err := takes(strings.Fields(regexp.MustCompile(` (POSITION|N)\b`).ReplaceAllString(m[1], " 1")))
			if err != nil {
				t.Errorf("%s: orchestrator %s: %v", filepath.Base(page), m[1], err)
			}
			if filepath.Base(page) == "operations.md" {
				operations[name] = true
			}
		}
	}
	for name := range commands {
		if !operations[name] {
			t.Errorf("docs/operations.md does not have %s", name)
		}
	}
}

// The status in docs/operations.md is what the command prints.
func TestStatusOfTheDocs(t *testing.T) {
	t.Parallel()
	one := 1
	const worker = "web-5d9-x2-1-k3f9a0qz"
	lane := func(projection string, partition int, worker string, report orchestrator.LaneReport) ops.PartitionStatus {
		return ops.PartitionStatus{Projection: projection, Partition: partition, TotalPartitions: 2, Worker: worker, Paused: worker == "", Report: &report}
	}
	status := paint(view{width: 100}.set(ops.ReplicaSetStatus{
		ReplicaSet: "main", At: now, Generation: 7, Phase: ops.PhaseActive, TotalPartitions: 2, Reason: "1 joined", ActivatedAt: ago(3*time.Hour + 12*time.Minute),
		Workers: []ops.WorkerStatus{{Worker: worker, Alive: true, State: "running"}, {Worker: "web-5d9-p7-1-0dm2c8tn", Alive: true, State: "running"}},
		Partitions: []ops.PartitionStatus{
			lane("mail", 0, "", orchestrator.LaneReport{State: orchestrator.LanePaused, Behind: 140, BehindSeconds: -1}),
			lane("mail", 1, "", orchestrator.LaneReport{State: orchestrator.LanePaused, Behind: 140, BehindSeconds: -1}),
			lane("search", 0, "web-5d9-p7-1-0dm2c8tn", orchestrator.LaneReport{State: orchestrator.LaneIdle, PerSecond: 120}),
			lane("search", 1, worker, orchestrator.LaneReport{State: orchestrator.LaneRetrying, Behind: 422, BehindSeconds: 550, Stalled: true}),
		},
		Waits: []ops.Wait{
			{Severity: ops.SeverityCritical, Projection: "search", Partition: &one, Worker: worker, Text: "projection search, partition 1 of 2, on worker " + worker + ": retrying after attempt 7: index is read-only"},
			{Severity: ops.SeverityInfo, Projection: "mail", Remedy: "orchestrator resume main mail", Text: "projection mail is paused by order, 140 positions behind"},
		},
	}), false)
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.ReplaceAll(string(page), "\r", ""), "```\n"+status+"```\n") {
		t.Errorf("docs/operations.md lacks\n%s", status)
	}
}

// takes says what is wrong with a command line.
func takes(args []string) (name string, err error) {
	name = args[0]
	command, ok := commands[name]
	if !ok {
		return name, usageError{"there is no such command"}
	}
	if len(args) == 1 {
		return name, nil
	}
	c, flags := &call{}, flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	command.flags(c, flags)
	if err := c.parse(flags, args[1:]); err != nil {
		return name, err
	}
	most := strings.Fields(command.args)
	if least := len(most) - strings.Count(command.args, "["); len(c.args) < least || len(c.args) > len(most) {
		return name, usageError{"it takes " + command.args}
	}
	if of := map[string]int{"list": 1, "retry": 1, "discard": 1, "add": 3}; name == "park" && len(c.args) != 1+of[c.args[0]] {
		return name, usageError{"park does not take that"}
	}
	return name, nil
}
