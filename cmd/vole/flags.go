package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/spec"
)

// machineFlags are the flags that describe a machine. What they say is kept until all are parsed,
// so that it can be laid over the machine of a --config file.
type machineFlags struct {
	config string
	given  []func(*spec.Machine)
}

// add defines the flags on cmd.
func (f *machineFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	text := func(name, short, value, usage string, set func(*spec.Machine, string)) {
		fs.VarP(&once{kind: value, empty: value == "WORDS", set: func(s string) error {
			f.given = append(f.given, func(m *spec.Machine) { set(m, s) })
			return nil
		}}, name, short, usage)
	}
	text("kernel", "k", "FILE", "the kernel to boot: a bzImage or an ELF vmlinux (default: the running kernel's image, else the newest of \"vole kernel pull\")",
		func(m *spec.Machine, s string) { m.Kernel = s })
	text("initrd", "i", "FILE", "the initial RAM disk (default: none with --disk, else the built-in guest, which prints what it sees and powers off)",
		func(m *spec.Machine, s string) { m.Initrd = s })
	text("append", "a", "WORDS", "words to add to the kernel command line",
		func(m *spec.Machine, s string) { m.Append = s })
	text("cmdline", "", "WORDS", fmt.Sprintf("the kernel command line instead of %q", vmm.DefaultCmdline),
		func(m *spec.Machine, s string) { m.Cmdline = &s })
	text("memory", "m", "SIZE", fmt.Sprintf("the guest's memory: bytes, or a number with K, M, G or T (default %s)", spec.FormatSize(vmm.DefaultMemory)),
		func(m *spec.Machine, s string) { m.Memory = spec.Text(s) })
	text("cpus", "c", "N", "the number of vCPUs (default 1)",
		func(m *spec.Machine, s string) { m.CPUs = spec.Text(s) })
	text("boot", "", "WAY", "how to boot a bzImage: auto (its vmlinux if the cache holds it), vmlinux (always), or bzimage (the guest unpacks it and can place it at random)",
		func(m *spec.Machine, s string) { m.Boot = s })
	text("timeout", "", "DURATION", "end the guest after that long, as 30s or 5m (exit code 6)",
		func(m *spec.Machine, s string) { m.Timeout = spec.Text(s) })
	text("console", "", "FILE", "write the guest's console to a file instead of stdout; the guest gets no input then",
		func(m *spec.Machine, s string) { m.Console = s })
	text("on-reset", "", "WAY", "when the guest resets: exit (code 3) or restart",
		func(m *spec.Machine, s string) { m.OnReset = s })
	text("memory-backing", "", "KIND", "what holds the guest's memory on the host: anonymous (default) or memfd",
		func(m *spec.Machine, s string) { m.MemoryBacking = s })
	text("huge-pages", "", "WAY", "the host's pages for the guest's memory: advise (transparent huge pages), never, or reserved (from the hugetlb pool)",
		func(m *spec.Machine, s string) { m.HugePages = s })
	fs.Var(&each{kind: "DISK", set: func(s string) error {
		d, err := spec.ParseDisk(s)
		f.given = append(f.given, func(m *spec.Machine) { m.Disks = append(m.Disks, d) })
		return err
	}}, "disk", "a disk, the first one being the guest's vda (repeatable): "+spec.DiskUsage)
	fs.Var(&each{kind: "NET", set: func(s string) error {
		n, err := spec.ParseNet(s)
		f.given = append(f.given, func(m *spec.Machine) { m.Nets = append(m.Nets, n) })
		return err
	}}, "net", "a network, the first one being the guest's eth0 (repeatable): "+spec.NetUsage)
	fs.Var(&each{kind: "RULE", set: func(s string) error {
		f.given = append(f.given, func(m *spec.Machine) { m.Publish = append(m.Publish, s) })
		return nil
	}}, "publish", "a port of this host that leads into --net user (repeatable): [ADDR:]PORT:GUESTPORT[/udp]; ADDR is 127.0.0.1 if it is left out")
	fs.Var(&once{kind: "PATH", set: func(s string) error {
		v, err := spec.ParseVsock(s)
		f.given = append(f.given, func(m *spec.Machine) { m.Vsock = &v })
		return err
	}}, "vsock", "sockets between host and guest by way of a Unix socket (CONNECT PORT to the guest, PATH_PORT from it): "+spec.VsockUsage)
	text("console-device", "", "DEVICE", "what carries the console: serial (ttyS0, default) or virtio (hvc0)",
		func(m *spec.Machine, s string) { m.ConsoleDevice = s })
	fs.Var(&each{kind: "PORT", set: func(s string) error {
		p, err := spec.ParsePort(s)
		f.given = append(f.given, func(m *spec.Machine) { m.Ports = append(m.Ports, p) })
		return err
	}}, "port", "a stream between a Unix socket and the guest's /dev/virtio-ports/NAME (repeatable): "+spec.PortUsage)
	fs.Var(&each{kind: "SHARE", set: func(s string) error {
		d, err := spec.ParseShare(s)
		f.given = append(f.given, func(m *spec.Machine) { m.Shares = append(m.Shares, d) })
		return err
	}}, "share", "a directory of this host, for mount -t virtiofs TAG in the guest (repeatable): "+spec.ShareUsage+
		"; the guest of exec has it mounted at PATH, if that is said; with locks=host files are locked for the host's programs too, and a lock that is not free within 10 seconds fails with ENOLCK")
	text("transport", "", "WAY", "how the guest reaches its virtio devices: pci (default), mmio, or mmio-cmdline (named on the kernel's command line, for kernels without ACPI)",
		func(m *spec.Machine, s string) { m.Transport = s })
	fs.BoolFunc("rng", "give the guest a source of entropy", func(s string) error {
		on, err := parseBool(s)
		f.given = append(f.given, func(m *spec.Machine) { m.RNG = on })
		return err
	})
	fs.BoolFunc("pit", "give the guest an i8254 timer", func(s string) error {
		on, err := parseBool(s)
		f.given = append(f.given, func(m *spec.Machine) { m.PIT = on })
		return err
	})
	fs.Var(&once{kind: "FILE", set: func(s string) error { f.config = s; return nil }}, "config",
		"a machine in JSON, with the long names of the flags that make the machine as keys; flags win over it")

	completeFiles(cmd, "kernel", "initrd", "console", "config", "disk", "vsock")
	_ = cmd.MarkFlagDirname("share")
	completeWords(cmd, "transport", "pci", "mmio", "mmio-cmdline")
	completeWords(cmd, "net", "user", "tap=")
	completeWords(cmd, "console-device", "serial", "virtio")
	completeWords(cmd, "boot", "auto", "vmlinux", "bzimage")
	completeWords(cmd, "on-reset", "exit", "restart")
	completeWords(cmd, "memory-backing", "memfd", "anonymous")
	completeWords(cmd, "huge-pages", "advise", "never", "reserved")
}

// machine puts the --config file and the flags together and checks every value. Errors name the
// flag, or the file and the key in it.
func (f *machineFlags) machine() (spec.Machine, vmm.Config, error) {
	var m spec.Machine
	if f.config != "" {
		file, err := os.Open(f.config)
		if err != nil {
			return m, vmm.Config{}, &usageError{fmt.Errorf("--config: %w", err)}
		}
		defer file.Close()
		if m, err = spec.Decode(file); err == nil {
			_, err = m.Config()
		}
		if err != nil {
			return m, vmm.Config{}, &usageError{fmt.Errorf("--config: %s: %w", f.config, err)}
		}
	}
	for _, set := range f.given {
		set(&m)
	}
	c, err := m.Config()
	if err != nil {
		var field *spec.FieldError
		if errors.As(err, &field) {
			err = fmt.Errorf("--%s: %w", field.Field, field.Err)
		}
		return m, c, &usageError{err}
	}
	return m, c, nil
}

// once is the value of a flag that may be given one time, and not as nothing.
type once struct {
	kind  string // what help calls the value
	set   func(string) error
	given bool
	empty bool // "" is a value too
	text  string
}

func (o *once) String() string { return o.text }
func (o *once) Type() string   { return o.kind }

// Set refuses the second time.
func (o *once) Set(s string) error {
	switch {
	case o.given:
		return fmt.Errorf("given more than once (%q, %q)", o.text, s)
	case s == "" && !o.empty:
		return errors.New("the value is empty")
	}
	o.given, o.text = true, s
	return o.set(s)
}

// each is the value of a flag that may be given any number of times.
type each struct {
	kind string
	set  func(string) error
	text []string
}

func (e *each) String() string { return strings.Join(e.text, " ") }
func (e *each) Type() string   { return e.kind }

// Set takes one more.
func (e *each) Set(s string) error {
	e.text = append(e.text, s)
	return e.set(s)
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// onceString defines a flag of that kind that only fills a variable.
func onceString(fs *pflag.FlagSet, dst *string, name, value, usage string) {
	fs.Var(&once{kind: value, set: func(s string) error { *dst = s; return nil }}, name, usage)
}

// completeWords offers words for a flag in shells. The flag exists: an error can't come.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completeFiles lets shells complete the flags as file names.
func completeFiles(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		_ = cmd.MarkFlagFilename(f)
	}
}
