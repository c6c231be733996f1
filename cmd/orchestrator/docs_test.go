package main

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
