package spec

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
)

// Disk is a disk in plain data: what stands behind --disk, and in a JSON file.
type Disk struct {
	// File is the path of a raw image, a block device or, if Format says so, a qcow2 image.
	File     string `json:"file"`
	ReadOnly bool   `json:"ro,omitempty"`
	// Serial is what the guest finds in /sys/block/*/serial.
	Serial string `json:"serial,omitempty"`
	// Format is "raw" or "qcow2".
	Format string `json:"format,omitempty"`
	// Cache is "writeback", "writethrough" or "none".
	Cache string `json:"cache,omitempty"`
	// COW keeps what the guest writes apart from File, and drops it at the end: in "memory", or in
	// a nameless sparse "file" in the directory for temporary files.
	COW string `json:"cow,omitempty"`
	// COWLimit bounds what COW keeps in memory, as [ParseSize] reads it. Without it that is half of
	// the host's RAM, which such disks of a machine share evenly.
	COWLimit Text `json:"cow-limit,omitempty"`
	// Queues is the number of queues; one for each vCPU is the default.
	Queues Text `json:"queues,omitempty"`
	// IOPS and BPS bound operations and bytes a second; IOPSBurst and BPSBurst are what an idle
	// disk may do at once.
	IOPS      Text `json:"iops,omitempty"`
	IOPSBurst Text `json:"iops-burst,omitempty"`
	BPS       Text `json:"bps,omitempty"`
	BPSBurst  Text `json:"bps-burst,omitempty"`
}

var diskOptions = []option[Disk]{
	{"ro", "on", func(d *Disk, v string) (err error) { d.ReadOnly, err = onOff(v); return err }},
	{"serial", "", func(d *Disk, v string) error { d.Serial = v; return nil }},
	{"format", "", func(d *Disk, v string) error { d.Format = v; return nil }},
	{"cache", "", func(d *Disk, v string) error { d.Cache = v; return nil }},
	{"cow", cowFile, func(d *Disk, v string) error { d.COW = v; return nil }},
	{"cow-limit", "", func(d *Disk, v string) error { d.COWLimit = Text(v); return nil }},
	{"queues", "", func(d *Disk, v string) error { d.Queues = Text(v); return nil }},
	{"iops", "", func(d *Disk, v string) error { d.IOPS = Text(v); return nil }},
	{"iops-burst", "", func(d *Disk, v string) error { d.IOPSBurst = Text(v); return nil }},
	{"bps", "", func(d *Disk, v string) error { d.BPS = Text(v); return nil }},
	{"bps-burst", "", func(d *Disk, v string) error { d.BPSBurst = Text(v); return nil }},
}

// DiskUsage is the form that ParseDisk reads, for help texts.
const DiskUsage = "FILE[,ro][,cow[=memory][,cow-limit=SIZE]][,serial=S][,format=raw|qcow2][,cache=writeback|writethrough|none][,queues=N][,iops=N][,iops-burst=N][,bps=SIZE][,bps-burst=SIZE]"

// ParseDisk reads a disk in the form of [DiskUsage]. A comma in the file's name is written twice.
func ParseDisk(s string) (Disk, error) {
	words := splitCommas(s)
	d := Disk{File: words[0]}
	if d.File == "" {
		return Disk{}, fmt.Errorf("%q names no file: want %s", s, DiskUsage)
	}
	err := parseOptions(s, words[1:], diskOptions, &d, "a disk: want "+DiskUsage+" (a comma in a file's name is written twice)")
	if err != nil {
		return Disk{}, err
	}
	return d, nil
}

const (
	cowFile   = "file"
	cowMemory = "memory"
)

// options checks every value of a disk and turns it into what package block takes.
func (d Disk) options(cpus int) (block.OpenOptions, block.Options, error) {
	open := block.OpenOptions{Path: d.File, Format: d.Format, ReadOnly: d.ReadOnly}
	dev := block.Options{Serial: d.Serial, Name: d.File, Queues: min(max(cpus, 1), block.MaxQueues)}
	fail := func(format string, args ...any) (block.OpenOptions, block.Options, error) {
		return open, dev, fmt.Errorf("%s: %w", d.File, fmt.Errorf(format, args...))
	}
	var err error
	switch {
	case d.File == "":
		return open, dev, errors.New("it names no file")
	case len(d.Serial) > block.MaxSerial:
		return fail("serial: %q has %d bytes, and %d have room", d.Serial, len(d.Serial), block.MaxSerial)
	case d.Format != "" && d.Format != block.FormatRaw && d.Format != block.FormatQcow2:
		return fail("format: %q is neither raw nor qcow2", d.Format)
	}
	switch d.COW {
	case "":
	case cowFile:
		open.COW = block.COWFile
	case cowMemory:
		open.COW = block.COWMemory
	default:
		return fail("cow: %q is neither %s nor %s", d.COW, cowFile, cowMemory)
	}
	if d.COWLimit != "" {
		n, err := ParseSize(string(d.COWLimit))
		switch {
		case err != nil || n == 0 || n > math.MaxInt64:
			return fail("cow-limit: %q is no limit: want a number of bytes above 0, or one with K, M, G or T", d.COWLimit)
		case d.COW != cowMemory:
			return fail("cow-limit: it bounds what cow=%s keeps, which is not asked for", cowMemory)
		}
		open.COWLimit = int64(n)
	}
	if d.Cache != "" {
		if open.Cache, err = block.ParseCacheMode(d.Cache); err != nil {
			return fail("cache: %w", err)
		}
	}
	if d.Queues != "" {
		n, ok := digits(string(d.Queues))
		if !ok || n < 1 || n > block.MaxQueues {
			return fail("queues: %q is not a whole number between 1 and %d", d.Queues, block.MaxQueues)
		}
		dev.Queues = int(n)
	}
	if err := parseRates(&dev.Limits, []rate{
		{"iops", d.IOPS, &dev.Limits.Ops.PerSecond}, {"iops-burst", d.IOPSBurst, &dev.Limits.Ops.Burst},
		{"bps", d.BPS, &dev.Limits.Bytes.PerSecond}, {"bps-burst", d.BPSBurst, &dev.Limits.Bytes.Burst},
	}); err != nil {
		return fail("%w", err)
	}
	return open, dev, nil
}

// limitCOW gives a disk that keeps its changes in memory, and has no limit of its own, its share of
// half of the host's RAM: a guest that writes all over its disk must not take all there is.
func (m Machine) limitCOW(open *block.OpenOptions) error {
	if open.COW != block.COWMemory || open.COWLimit != 0 {
		return nil
	}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return fmt.Errorf("cow=%s: the host's RAM is not known: %w (cow-limit sets a limit)", cowMemory, os.NewSyscallError("sysinfo", err))
	}
	sharing := 0
	for _, d := range m.Disks {
		if d.COW == cowMemory && d.COWLimit == "" {
			sharing++
		}
	}
	open.COWLimit = int64(uint64(host.Totalram) * uint64(host.Unit) / 2 / uint64(max(sharing, 1)))
	return nil
}

// disks opens the disks.
func (m Machine) disks(cpus int, log *slog.Logger) (list []virtio.Device, err error) {
	defer func() {
		if err != nil {
			closeAll(list)
		}
	}()
	for _, d := range m.Disks {
		open, opts, err := d.options(cpus)
		if err != nil {
			return list, &FieldError{"disk", err}
		}
		if err := m.limitCOW(&open); err != nil {
			return list, err
		}
		opts.Logger = log
		opts.Name = filepath.Base(d.File)
		img, err := block.Open(open)
		if err != nil {
			return list, &FieldError{"disk", err}
		}
		dev, err := block.New(img, opts)
		if err != nil {
			return list, &FieldError{"disk", err}
		}
		list = append(list, dev)
	}
	return list, nil
}
