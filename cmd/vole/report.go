package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/spec"
)

// runReport is what --report writes: the last machine's report and what the process adds to it.
// Times count from the start of the process.
type runReport struct {
	vmm.Report
	Started  time.Time
	Cmdline  string
	Resident *resident
	Restarts int
	ExitCode int
	Err      error
}

// finish adds how the run ended.
func (r *runReport) finish(err error, restarts int) {
	// What ends without a word has said its reason before.
	if r.Err == nil || err == nil || err.Error() != "" {
		r.Err = err
	}
	r.ExitCode, r.Restarts = exitCode(err), restarts
}

// MarshalJSON gives the keys their order; errors become text.
func (r *runReport) MarshalJSON() ([]byte, error) {
	type ending struct {
		Reason vmm.Reason `json:"reason"`
		Code   int        `json:"debug_exit_code"`
		Detail string     `json:"detail,omitempty"`
	}
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	return json.Marshal(struct {
		Vole     versionInfo        `json:"vole"`
		Started  time.Time          `json:"started"`
		ExitCode int                `json:"exit_code"`
		Message  string             `json:"message,omitempty"`
		Exit     ending             `json:"exit"`
		Restarts int                `json:"restarts"`
		Boot     vmm.BootInfo       `json:"boot"`
		Cmdline  string             `json:"cmdline"`
		VCPUs    int                `json:"vcpus"`
		Memory   uint64             `json:"memory_bytes"`
		Timeline []vmm.Mark         `json:"timeline"`
		Exits    map[string]uint64  `json:"exits"`
		Devices  []vmm.DeviceReport `json:"devices,omitempty"`
		Resident *resident          `json:"resident,omitempty"`
	}{
		readVersion(), r.Started, r.ExitCode, text(r.Err),
		ending{r.Exit.Reason, r.Exit.Code, text(r.Exit.Err)},
		r.Restarts, r.Boot, r.Cmdline, r.VCPUs, r.Memory, r.timeline(), r.Exits, r.Devices, r.Resident,
	})
}

// timeline puts the process's own marks before the machine's.
func (r *runReport) timeline() []vmm.Mark {
	own := []vmm.Mark{{Name: "process"}, {Name: "main", At: atMain.Sub(r.Started)}}
	return append(own, r.Timeline...)
}

// text is the report for people.
func (r *runReport) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n", readVersion())
	fmt.Fprintf(&b, "ended     %s (exit code %d)\n", r.Exit, r.ExitCode)
	if r.Err != nil {
		fmt.Fprintf(&b, "          %s\n", oneLine(r.Err.Error()))
	}
	if r.Restarts > 0 {
		fmt.Fprintf(&b, "restarts  %d; the rest is about the last machine\n", r.Restarts)
	}
	if r.VCPUs > 0 {
		how := r.Boot.Protocol
		if r.Boot.Cached {
			how += ", unpacked in the cache"
		}
		fmt.Fprintf(&b, "kernel    %s (%s)\n", oneLine(r.Boot.Kernel), how)
		fmt.Fprintf(&b, "cmdline   %s\n", oneLine(r.Cmdline))
		fmt.Fprintf(&b, "machine   %d vCPU, %s memory\n", r.VCPUs, spec.FormatSize(r.Memory))
	}
	b.WriteString("timeline  from the start of the process\n")
	last := time.Duration(0)
	for _, m := range r.timeline() {
		fmt.Fprintf(&b, "  %-9s %10.3f ms  +%.3f\n", m.Name, ms(m.At), ms(m.At-last))
		last = m.At
	}
	if len(r.Exits) > 0 {
		b.WriteString("exits     to user space\n")
		for _, k := range slices.SortedFunc(maps.Keys(r.Exits), func(a, b string) int {
			if r.Exits[a] != r.Exits[b] {
				return int(max(min(int64(r.Exits[b])-int64(r.Exits[a]), 1), -1))
			}
			return strings.Compare(a, b)
		}) {
			if r.Exits[k] > 0 {
				fmt.Fprintf(&b, "  %-9s %10d\n", k, r.Exits[k])
			}
		}
	}
	if len(r.Devices) > 0 {
		b.WriteString("devices   virtio, in the order of their slots\n")
		for _, d := range r.Devices {
			fmt.Fprintf(&b, "  %s\n", strings.TrimSpace(fmt.Sprintf("%-9s %s", d.Type, strings.Join(deviceText(d), "\n            "))))
		}
	}
	if m := r.Resident; m != nil {
		b.WriteString("resident  at the end\n")
		fmt.Fprintf(&b, "  %-9s %10.1f MiB of the guest's %s\n", "guest", mib(m.Guest), spec.FormatSize(r.Memory))
		fmt.Fprintf(&b, "  %-9s %10.1f MiB, %.1f of it anonymous\n", "vole", mib(m.Rest), mib(m.RestAnonymous))
	}
	return b.Bytes()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func mib(n uint64) float64       { return float64(n) / (1 << 20) }

// reportOnStderr is the value of --report for a report on stderr.
const reportOnStderr = "-"

// report is what --report asks for.
type report struct {
	file   outputFile // of no name if there is none, or on stderr
	stderr bool
}

func newReport(value string) report {
	r := report{file: outputFile{flag: "report", path: value}, stderr: value == reportOnStderr}
	if r.stderr {
		r.file.path = ""
	}
	return r
}

func (r *report) wanted() bool { return r.stderr || r.file.path != "" }

// write writes the report to where it belongs, and closes its file, which has to be open.
func (r *report) write(run *runReport, stderr io.Writer) error {
	if r.stderr {
		_, err := stderr.Write(run.text())
		return err
	}
	defer r.file.close()
	text := run.text()
	if strings.HasSuffix(r.file.path, ".json") {
		var b bytes.Buffer
		if err := writeJSON(&b, run); err != nil {
			return err
		}
		text = b.Bytes()
	} else if strings.HasSuffix(r.file.path, ".svg") {
		text = timelineSVG(fmt.Sprintf("vole: %s on %s", run.Exit, run.Boot.Kernel), run.timeline())
	}
	if _, err := (&boundedWriter{stream: r.file.stream}).Write(text); err != nil {
		return r.file.fail("write", err)
	}
	return nil
}

// resident is the memory of this process that is in RAM, in bytes.
type resident struct {
	Guest         uint64 `json:"guest_bytes"` // of the guest's memory
	Rest          uint64 `json:"vole_bytes"`
	RestAnonymous uint64 `json:"vole_anonymous_bytes"`
}

// readResident returns nil where /proc does not say.
func readResident() *resident {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil
	}
	defer f.Close()
	r, err := parseSmaps(f)
	if err != nil {
		return nil
	}
	return &r
}

// ramName is in the name that the guest's memory has in /proc/self/smaps, where the kernel names it.
const ramName = "vole-ram"

// parseSmaps adds up what proc_pid_smaps(5) tells, in KiB, of each mapping. The guest's memory is recognised by its name
// or, as anonymous memory on a kernel that names none, by being left out of core dumps: nothing else without a name is.
func parseSmaps(in io.Reader) (resident, error) {
	var r resident
	var m mapping
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := lines.Bytes()
		key, rest, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.IndexByte(key, '-') > 0 && bytes.IndexByte(key, ' ') > 0:
			// The first line of a mapping: a colon is in its device and not in its addresses.
			r.add(m)
			m = mapping{ram: bytes.Contains(line, []byte(ramName)), unnamed: len(bytes.Fields(line)) == 5}
		case string(key) == "Rss":
			m.rss = kib(rest)
		case string(key) == "Anonymous":
			m.anonymous = kib(rest)
		case string(key) == "VmFlags" && m.unnamed && bytes.Contains(rest, []byte(" dd")):
			m.ram = true
		}
	}
	r.add(m)
	return r, lines.Err()
}

// mapping is what smaps tells of one mapping, in bytes.
type mapping struct {
	ram, unnamed   bool
	rss, anonymous uint64
}

func (r *resident) add(m mapping) {
	if m.ram {
		r.Guest += m.rss
		return
	}
	r.Rest += m.rss
	r.RestAnonymous += m.anonymous
}

// kib reads "     1234 kB".
func kib(b []byte) uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(bytes.TrimSuffix(b, []byte("kB")))), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}
