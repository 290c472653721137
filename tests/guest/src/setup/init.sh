#!/bin/sh
# The guest's first process: takes lines of shell from the command port, and
# answers each with its exit status, the length of what it printed, and that.
# The host's side is src/port.rs.

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t configfs config /sys/kernel/config
mount -t debugfs debug /sys/kernel/debug
exec </dev/console >/dev/console 2>&1
busybox --install -s /bin
# Drivers that the kernel does not have in itself.
[ ! -e /modules/load ] || while read -r module; do insmod "/modules/$module"; done </modules/load
export PATH=/bin HOME=/root TERM=linux PS1='guest:\w# '
# For a user's shell: this is no init that can be asked to end the guest.
echo "alias poweroff='poweroff -f' reboot='reboot -f'" >/root/.profile

# The kernel finds the port while this runs, and names it by its virtio device.
until port=$(ls /dev/vport*p1 2>/dev/null); do usleep 10000; done
exec 3<>"$port"
echo ready >&3
while IFS= read -r line <&3; do
    sh -c "$line" </dev/null >/tmp/.output 2>&1 3>&-
    echo "$? $(stat -c %s /tmp/.output)" >&3
    cat /tmp/.output >&3
done
echo 'init: the command port was closed'
poweroff -f
