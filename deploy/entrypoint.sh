#!/bin/sh
# What a container starts with: files are its user's alone, as on a machine of one's own.
umask 077
exec "$@"
