package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// The scripts call completeCommand with the words of the command line up to the cursor. It
// prints the candidates for the last of them, one a line.
const completeCommand = "__complete"

const bashScript = `# bash completion of orchestrator. To load it: source <(orchestrator completion bash)
_orchestrator() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(orchestrator __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _orchestrator orchestrator
`

const zshScript = `#compdef orchestrator
# zsh completion of orchestrator. To load it: source <(orchestrator completion zsh)
_orchestrator() {
    local -a candidates
    candidates=("${(@f)$(orchestrator __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    candidates=(${candidates:#})
    if (( ${#candidates} )); then
        compadd -a candidates
    else
        _files
    fi
}
if [[ "${funcstack[1]}" == _orchestrator ]]; then
    _orchestrator "$@"
else
    compdef _orchestrator orchestrator
fi
`

const fishScript = `# fish completion of orchestrator. To load it: orchestrator completion fish | source
function __orchestrator_complete
    set -l words (commandline -opc) (commandline -ct)
    orchestrator __complete $words[2..-1] 2>/dev/null
end
complete -c orchestrator -f -a '(__orchestrator_complete)'
complete -c orchestrator -o sql -r -F
`

// completion prints the script of a shell.
func completion(_ context.Context, c *call) error {
	script := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}[c.arg(0)]
	_, err := io.WriteString(c.stdout, script)
	return err
}

// completeTimeout bounds how long a completion waits for the database.
const completeTimeout = 2 * time.Second

// complete prints the candidates for the last word. It is quiet: without a database there are
// none of its names.
func complete(ctx context.Context, words []string, stdout io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	words, part := joinValue(words)
	for _, candidate := range candidates(ctx, words) {
		// Other names would have to be quoted, which each shell does in its own way.
		if text, ok := strings.CutPrefix(candidate, part); ok && completable(candidate) && strings.HasPrefix(candidate, words[len(words)-1]) {
			fmt.Fprintln(stdout, text)
		}
	}
}

// completable reports whether shells take a candidate as one word as it is.
func completable(candidate string) bool {
	return simple(strings.ReplaceAll(strings.TrimPrefix(candidate, "-"), "=", ""))
}

// joinValue joins -flag=value where bash has split it at =, and returns which part bash leaves as
// it is.
func joinValue(words []string) (joined []string, part string) {
	switch n := len(words); {
	case n == 0:
		return []string{""}, ""
	case n >= 2 && words[n-1] == "=":
		part = words[n-2] + "="
		return append(slices.Clone(words[:n-2]), part), part
	case n >= 3 && words[n-2] == "=":
		part = words[n-3] + "="
		return append(slices.Clone(words[:n-3]), part+words[n-1]), part
	}
	return words, ""
}

// candidates returns what the last word may be.
func candidates(ctx context.Context, words []string) []string {
	names := slices.Sorted(maps.Keys(commands))
	if len(words) == 1 || len(words) == 2 && words[0] == "help" {
		return append(names, "help")
	}
	name, before, last := words[0], words[1:len(words)-1], words[len(words)-1]
	command, ok := commands[name]
	if !ok {
		return nil
	}
	c := &call{}
	flags := c.flagSet(name)
	if c.parse(flags, before) != nil {
		return nil // the last word is the value of a flag, or something is wrong
	}
	if strings.HasPrefix(last, "-") {
		var list []string
		flags.VisitAll(func(f *flag.Flag) { list = append(list, "-"+f.Name) })
		if name == "status" && strings.HasPrefix(last, "-check=") {
			for _, s := range severities {
				list = append(list, "-check="+string(s))
			}
		}
		return list
	}
	takes, args := command.args, c.args
	if command.variants != nil {
		if len(args) == 0 {
			return slices.Sorted(maps.Keys(command.variants))
		}
		takes, args = command.variants[args[0]], args[1:]
	}
	kinds := strings.Fields(takes)
	if len(args) >= len(kinds) {
		return nil
	}
	set := ""
	if len(args) > 0 && kinds[0] == "SET" {
		set = args[0]
	}
	return c.names(ctx, strings.Trim(kinds[len(args)], "[]"), set)
}

// names returns the names of one kind that the database has: those of a replica set, or, if set
// is empty, of all.
func (c *call) names(ctx context.Context, kind, set string) []string {
	if c.open(subcommand{}) != nil {
		return nil
	}
	defer c.db.Close()
	c.in = orchestrator.InSchema(c.schema)
	sets := []orchestrator.ReplicaSetName{orchestrator.ReplicaSetName(set)}
	if set == "" {
		var err error
		if sets, err = ops.ReplicaSets(ctx, c.db, c.in); err != nil {
			return nil
		}
	}
	found := map[string]bool{}
	for _, set := range sets {
		if kind == "SET" {
			found[string(set)] = true
			continue
		}
		s, err := ops.Status(ctx, c.db, set, c.in)
		if err != nil {
			return nil
		}
		switch kind {
		case "PROJECTION":
			for _, p := range s.Partitions {
				found[p.Projection] = true
			}
			for _, r := range s.Rebuilds {
				found[r.Projection] = true
			}
		case "WORKER":
			for _, w := range s.Workers {
				found[w.Worker] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// simple reports whether a name has no character that means something to a shell.
func simple(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_-.:/@+,~", r)
	}) && name[0] != '-' && name[0] != '~'
}
