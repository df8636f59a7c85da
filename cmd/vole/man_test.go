package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/vole.1 anew")

// TestManPage keeps the manual page in step with the commands and flags: run it with -update after
// a change.
func TestManPage(t *testing.T) {
	page := filepath.Join("..", "..", "docs", "vole.1")
	want := manPage(newRoot())
	if *update {
		require.NoError(t, os.WriteFile(page, want, 0o644))
	}
	got, err := os.ReadFile(page)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got), "go test ./cmd/vole -run TestManPage -update")
}

func TestManPageNames(t *testing.T) {
	page := string(manPage(newRoot()))
	for _, want := range []string{"vole run", "vole kernel path", "vole doctor", `\-\-on\-reset`, ".SH EXIT STATUS", "VOLE_CACHE"} {
		assert.Contains(t, page, want)
	}
	for i, line := range strings.Split(page, "\n") {
		assert.False(t, strings.HasPrefix(line, "'") || strings.HasSuffix(line, " "), "line %d: %q", i+1, line)
	}
}

// manPage writes the page in the man(7) macros.
func manPage(root *cobra.Command) []byte {
	root.InitDefaultHelpCmd()
	m := &manWriter{}
	m.line(`.\" Made from the command definitions in cmd/vole by its TestManPage -update.`)
	m.line(".TH VOLE 1")
	m.section("NAME")
	m.text("vole - " + strings.ToLower(root.Short[:1]) + root.Short[1:])
	m.section("SYNOPSIS")
	for _, c := range leaves(root) {
		m.line(".br")
		m.line(".B " + roff(c.CommandPath()))
		if rest := strings.TrimPrefix(c.UseLine(), c.CommandPath()); rest != "" {
			m.line(roff(strings.TrimSpace(rest)))
		}
	}
	m.section("DESCRIPTION")
	m.text(root.Long)
	m.section("COMMANDS")
	for _, c := range leaves(root) {
		m.command(c)
	}
	m.section("EXIT STATUS")
	m.text("Of run and exec, as above. The other commands: 0 if all is well, 1 for an error on the host (doctor: a stock kernel can't boot here), 2 for bad usage; kernel pull and kernel rm 128 and the signal's number if one has ended them.")
	m.section("ENVIRONMENT")
	m.item("VOLE_CACHE", "the directory of pulled kernels, unpacked ones and archives of modules, instead of vole/kernels in $XDG_CACHE_HOME or ~/.cache")
	m.section("FILES")
	m.item("/dev/kvm", "what machines are made with; vole doctor says what is wrong with it")
	m.item("/boot/vmlinuz-*, /boot/vmlinuz, /lib/modules/*/vmlinuz, /usr/lib/modules/*/vmlinuz, ~/.cache/vole/kernels/pulled", "where kernels are looked for")
	return m.b.Bytes()
}

// leaves are the commands that do something, in the order of help.
func leaves(c *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, sub := range c.Commands() {
		if sub.Hidden {
			continue
		}
		if sub.HasSubCommands() {
			list = append(list, leaves(sub)...)
			continue
		}
		list = append(list, sub)
	}
	return list
}

type manWriter struct{ b bytes.Buffer }

func (m *manWriter) line(s string)    { fmt.Fprintln(&m.b, s) }
func (m *manWriter) section(s string) { m.line(".SH " + s) }

// text writes paragraphs; lines that begin with spaces stay as they are.
func (m *manWriter) text(s string) {
	literal := false
	set := func(on bool) {
		if on != literal {
			m.line(map[bool]string{true: ".nf", false: ".fi"}[on])
		}
		literal = on
	}
	for _, line := range strings.Split(strings.TrimRight(s, "\n"), "\n") {
		switch {
		case line == "":
			set(false)
			m.line(".PP")
		case strings.HasPrefix(line, "  "):
			set(true)
			m.line(roff(line))
		default:
			set(false)
			m.line(roff(line))
		}
	}
	set(false)
}

func (m *manWriter) item(name, says string) {
	m.line(".TP")
	m.line(".B " + roff(name))
	m.line(roff(says))
}

func (m *manWriter) command(c *cobra.Command) {
	m.line(".SS " + roff(c.CommandPath()))
	if c.Long != "" {
		m.text(c.Long)
	} else {
		m.text(c.Short + ".")
	}
	c.InitDefaultHelpFlag()
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value, _ := pflag.UnquoteUsage(f); value != "" {
			name += " " + value
		}
		m.item(name, f.Usage)
	})
	if c.Example != "" {
		m.line(".PP")
		m.line("Examples:")
		m.line(".PP")
		m.text(c.Example)
	}
}

// roff escapes text: backslashes, the hyphens that are minus signs in flags, and a leading control
// character.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
