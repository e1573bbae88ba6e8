# shtab before 1.6 offers the first of several choices alone. Later ones have neither of these lines.
s/_choices_var="${current_action}_choices"/_choices_var="${current_action}_choices[@]"/
s/compgen -W "${current_action_choices}"/compgen -W "${current_action_choices\/\/ \/$'\\n'}"/
