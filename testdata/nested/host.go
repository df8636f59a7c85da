package nested

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Names of environment variables.
const (
	envMode   = "VOLE_NESTED"
	envInside = "VOLE_NESTED_INSIDE"
	envLog    = "VOLE_NESTED_LOG"
	envAppend = "VOLE_NESTED_APPEND"
)

// DefaultMemory is the memory of the emulated host: enough for a sparse guest
// of 5 GiB. QEMU touches what the emulated host touches.
const DefaultMemory = "8G"

// Command is one command in an emulated host.
type Command struct {
	// Args are the program, by its path outside, and its arguments. The program
	// is brought in, with its libraries if it is dynamic.
	Args []string
	// Dir is the working directory; it is created. "" is this process's.
	Dir string
	// Env is added to the environment that the command gets: the variables of
	// this process that begin with VOLE_ or GO, and CI and TERM.
	Env []string
	// Assets are brought in by name, Files by path; directories with all that
	// is below them.
	Assets, Files []string
	// Out are absolute paths of files and directories that come back after the
	// command has ended. What is a directory outside is one inside too, empty.
	Out []string
	// Memory of the emulated host, as QEMU takes it; "" is DefaultMemory.
	Memory string
	// Modules are loaded by the emulated host, by name, with those that they need.
	Modules []string
	// Disk is the size of a disk of the emulated host, mounted at DiskDir, as
	// mke2fs takes it ("1G"); "" is none. Without it all files are in memory.
	Disk string
	// Quiet is the longest time without output; 0 is no bound.
	Quiet time.Duration
	// Deadline ends the command; zero is none.
	Deadline time.Time

	Stdin          io.Reader // nil is empty
	Stdout, Stderr io.Writer
	// Note gets one-line remarks about the emulated host; nil discards them.
	Note func(string)
}

// Result says how a command in the emulated host ended.
type Result struct {
	Code    int    // 128+n for signal n
	Console string // the last lines of the emulated host's kernel, for a message
}

// Run boots an emulated host, with this program as its init (so it must call
// RunIfInit or Main first thing), runs the command and ends the host. An error
// means that the command did not run to its own end; it is ErrHost if the
// emulation was to blame, so that running again in a fresh host makes sense.
func (c *Command) Run(ctx context.Context) (Result, error) {
	kernel, err := hostKernel()
	if err != nil {
		return Result{}, err
	}
	initrd, err := c.pack(kernel)
	if err != nil {
		return Result{}, err
	}
	defer os.Remove(initrd)
	m := &machine{
		kernel: kernel.Image, initrd: initrd, memory: c.Memory,
		stdin: c.Stdin, stdout: c.Stdout, stderr: c.Stderr,
		store: storeBelow(c.Out), quiet: c.Quiet, deadline: c.Deadline,
	}
	if m.memory == "" {
		m.memory = DefaultMemory
	}
	if c.Disk != "" {
		if m.disk, err = makeDisk(ctx, c.Disk); err != nil {
			return Result{}, err
		}
		defer os.Remove(m.disk)
	}
	if path := os.Getenv(envLog); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return Result{}, fmt.Errorf("nested: open the console's log: %w", err)
		}
		defer f.Close()
		m.console.log = f
	}
	begin := time.Now()
	m.onReady = func(r ready) {
		c.note("emulated host up after %.1f s, Linux %s", time.Since(begin).Seconds(), r.Kernel)
		for _, p := range r.Problems {
			c.note("emulated host: %s", p)
		}
	}
	x, err := m.run(ctx)
	return Result{Code: x.Code, Console: m.console.last(30)}, err
}

func (c *Command) note(format string, args ...any) {
	if c.Note != nil {
		c.Note(fmt.Sprintf(format, args...))
	}
}

// pack writes the initramfs for the command and returns its path.
func (c *Command) pack(kernel Kernel) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("nested: find this program: %w", err)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	var p packer
	defer p.close()
	dir := c.Dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return "", fmt.Errorf("nested: find the working directory: %w", err)
		}
	}
	j := job{Argv: c.Args, Dir: dir, Out: c.Out}
	j.Env = insideEnv(append([]string{"VOLE_TEST_CACHE=" + cache}, c.Env...))
	modules := append(slices.Clone(hostModules), c.Modules...)
	if c.Disk != "" {
		j.Disk = true
		modules = append(modules, diskModules...)
	}
	if j.Modules, err = p.modules(kernel, modules); err != nil {
		return "", err
	}
	for _, program := range []string{self, c.Args[0]} {
		if err := p.program(program); err != nil {
			return "", err
		}
	}
	for _, name := range c.Assets {
		if err := p.asset(name); err != nil {
			return "", err
		}
	}
	for _, path := range append([]string{manifestPath(cache)}, c.Files...) {
		if err := p.add(path); err != nil {
			return "", err
		}
	}
	for _, out := range c.Out {
		if st, err := os.Stat(out); err == nil && st.IsDir() {
			if err := p.archive.Dir(out, 0o755); err != nil {
				return "", err
			}
		}
	}
	raw, err := json.Marshal(j)
	if err != nil {
		return "", fmt.Errorf("nested: encode the job: %w", err)
	}
	if err := errors.Join(
		p.archive.Bytes(jobFile, 0o644, raw),
		p.archive.Symlink("/init", self),
		p.archive.CharDevice("/dev/console", 0o600, 5, 1),
	); err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("nested: find the working directory: %w", err)
	}
	if err := p.archive.Dir(dir, 0o755); err != nil {
		return "", err
	}
	return p.write()
}
