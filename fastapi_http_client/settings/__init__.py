"""The settings of all clients: from the environment, files and code to one `ClientConfig` each.

variables   how options are called outside, and what a wrong name probably meant
sections    values with their sources, and how one place goes over another
load        reads every place, when an app starts, and checks what it finds
explain     the effective settings as a text
"""
