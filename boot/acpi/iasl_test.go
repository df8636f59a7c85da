package acpi

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// acpicaTool finds a program of Debian's acpica-tools: $VOLE_IASL names iasl,
// and the others are looked for beside it; otherwise PATH is searched.
func acpicaTool(t *testing.T, tool string) string {
	t.Helper()
	path := tool
	if iasl := os.Getenv("VOLE_IASL"); iasl != "" {
		path = filepath.Join(filepath.Dir(iasl), tool)
	}
	found, err := exec.LookPath(path)
	if err != nil {
		t.Skipf("no %s (Debian: apt install acpica-tools, or set VOLE_IASL): %v", tool, err)
	}
	return found
}

func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v:\n%s", program, args, out)
	return string(out)
}

var iaslComplaint = regexp.MustCompile(`(?i)\b(error|warning|remark)\b`)

// The disassembler accepts every table, and the compiler makes the same bytes of
// its output again, but for its own name in the header.
func TestIASLRoundTrip(t *testing.T) {
	iasl := acpicaTool(t, "iasl")
	for _, g := range goldenMachines() {
		t.Run(g.name, func(t *testing.T) {
			p := build(t, g.m)
			p.tables["XSDT"] = p.xsdt
			for sig, table := range p.tables {
				dir := t.TempDir()
				require.NoError(t, os.WriteFile(filepath.Join(dir, "table.dat"), table.b, 0o644))
				out := run(t, dir, iasl, "-d", "table.dat")
				require.NotRegexp(t, iaslComplaint, out, sig)

				// -oa: every name and integer as it is written; -we: a warning
				// is an error.
				out = run(t, dir, iasl, "-oa", "-we", "-p", "again", "table.dsl")
				require.Contains(t, out, "0 Errors, 0 Warnings, 0 Remarks", sig)
				again, err := os.ReadFile(filepath.Join(dir, "again.aml"))
				require.NoError(t, err)
				require.Equal(t, anonymous(table.b), anonymous(again), sig)
			}
		})
	}
}

// anonymous is a table without checksum, creator id and creator revision.
func anonymous(table []byte) []byte {
	b := append([]byte(nil), table...)
	b[9] = 0
	clear(b[28:36])
	return b
}

// ACPICA, which is also Linux's interpreter, loads the DSDT and runs its methods.
func TestACPIExec(t *testing.T) {
	acpiexec := acpicaTool(t, "acpiexec")
	m := withVirtio(withPCI(testMachine(2)), 2)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "dsdt.dat"), build(t, m).tables["DSDT"].b, 0o644))
	exec := func(commands ...string) string {
		out := run(t, dir, acpiexec, "-b", strings.Join(commands, ";"), "dsdt.dat")
		require.NotRegexp(t, `(?i)ACPI (BIOS )?(error|warning)|AE_[A-Z]`, out)
		return out
	}

	t.Run("names", func(t *testing.T) {
		out := exec("predefined")
		for _, n := range []string{`\_S5`, `\_SB.COM1._CRS`, `\_SB.GED._EVT`, `\_SB.PCI0._OSC`, `\_SB.C001._UID`} {
			require.Contains(t, out, n+" ")
		}
	})

	t.Run("_OSC", func(t *testing.T) {
		const (
			pciBridge = "5B4DDB33F71F1C4096577441C03DD766"
			other     = "5B4DDB33F71F1C4096577441C03DD767"
		)
		for _, c := range []struct {
			name, uuid, revision, want string
		}{
			{"grants what is asked", pciBridge, "1", "01 00 00 00 19 00 00 00 5F 01 00 00"},
			{"unknown revision", pciBridge, "2", "09 00 00 00 19 00 00 00 5F 01 00 00"},
			{"unknown UUID", other, "1", "05 00 00 00 19 00 00 00 5F 01 00 00"},
		} {
			t.Run(c.name, func(t *testing.T) {
				out := exec(fmt.Sprintf(`evaluate \_SB.PCI0._OSC (%s) %s 3 (01000000190000005F010000)`, c.uuid, c.revision))
				require.Contains(t, out, c.want)
			})
		}
	})

	t.Run("_EVT", func(t *testing.T) {
		// acpiexec answers a port read with the fill value.
		for _, c := range []struct {
			name, events string
			notifies     bool
		}{
			{"nothing pending", "0", false},
			{"power button", "1", true},
			{"another event", "0xfe", false},
			{"power button and more", "0xff", true},
		} {
			t.Run(c.name, func(t *testing.T) {
				// acpiexec delivers a notification from a thread of its own and
				// may end before that: ask it again where one is expected.
				const notification = "Received a Device Notify on [PWRB]"
				var out string
				for range 20 {
					out = run(t, dir, acpiexec, "-fv", c.events, "-b", `evaluate \_SB.GED._EVT 5`, "dsdt.dat")
					require.Contains(t, out, "No object was returned")
					if !c.notifies || strings.Contains(out, notification) {
						break
					}
				}
				require.Equal(t, c.notifies, strings.Contains(out, notification), out)
				require.Equal(t, c.notifies, strings.Contains(out, "Value 0x80"), out)
			})
		}
	})
}
